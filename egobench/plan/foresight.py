"""What is predicted of the points of a matrix; asked of a point only when somebody wants to know, and then kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Final

from egobench.plan.blocks import VARIANT, Block
from egobench.predict.figures import figures_for
from egobench.predict.forecast import IDLE, Forecast, Forecaster, nothing
from egobench.spec.axes import AxisValue
from egobench.spec.matrix import LoadedMatrix

MOST_PREDICTED: Final = 200_000
"""Points of a matrix that differ in something predictions read; beyond, planning would take minutes."""


class Foresight:
    """The predictions of a whole matrix."""

    def __init__(self, loaded: LoadedMatrix, blocks: Sequence[Block]) -> None:
        self._loaded = loaded
        self._refusal: Forecast | None = None
        if loaded.site.device == "cuda":
            count = sum(math.prod(_num_kinds(block)) for block in blocks if VARIANT not in block.fixed)
            if count > MOST_PREDICTED:
                what = f"{count:,} points differ in what predictions read, more than {MOST_PREDICTED:,}"
                self._refusal = nothing(f"{what}; `egobench predict --cell` looks at one of them")
        self._figures = figures_for(loaded.site.gpu, loaded.folder)
        self._forecaster = cache(self._make)

    def of(self, block: Block) -> BlockForesight:
        """Return the predictions of one block's points."""
        if VARIANT in block.fixed:
            return BlockForesight(block, nothing("variants are not predicted"))
        return BlockForesight(block, self._refusal or self._forecaster(block.workload))

    def forecaster(self, workload: str) -> Forecaster | Forecast:
        """Return what predicts cells of a workload, or the forecast that says why nothing does."""
        return self._forecaster(workload)

    def _make(self, workload: str) -> Forecaster | Forecast:
        loaded = self._loaded
        folder = loaded.workload_folders[workload]
        return Forecaster.made(loaded.workloads[workload], loaded.site, folder, self._figures)


class BlockForesight:
    """The predictions of one block's points."""

    def __init__(self, block: Block, source: Forecaster | Forecast) -> None:
        self._block, self._source = block, source
        self.reads = () if isinstance(source, Forecast) else _places(block)
        """Dimensions that change a prediction."""
        self._known: dict[tuple[int, ...], Forecast] = {}

    def at(self, index: Sequence[int]) -> Forecast:
        """Return the prediction of one point."""
        if isinstance(self._source, Forecast):
            return self._source
        key = tuple([index[place] for place in self.reads])
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._source.of(self._point(index))
        return found

    def _point(self, index: Sequence[int]) -> dict[str, AxisValue]:
        point = dict(self._block.fixed)
        for one, row in zip(self._block.dimensions, index, strict=True):
            point.update(zip(one.names, one.rows[row], strict=True))
        return point


def _places(block: Block) -> tuple[int, ...]:
    return tuple(place for place, one in enumerate(block.dimensions) if not IDLE.issuperset(one.names))


def _num_kinds(block: Block) -> list[int]:
    """Return the sizes of the dimensions that cost a prediction each; a number of steps only multiplies one."""
    cheap = IDLE | {"num_steps"}
    return [len(one.rows) for one in block.dimensions if not cheap.issuperset(one.names)]
