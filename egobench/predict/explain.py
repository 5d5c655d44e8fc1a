"""One cell looked at from all sides: what takes its memory and its time, the largest micro-batch, more GPUs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from egobench.predict.answer import Memory, Time
from egobench.predict.forecast import Forecast, Forecaster, Looked
from egobench.predict.memory import explain as with_formulas
from egobench.predict.setting import Setting
from egobench.predict.time import scaled

MOST_GPUS: Final = 1024
"""Up to here scaling is shown."""


@dataclass(frozen=True)
class Scaled:
    """The same cell on so many GPUs, its micro-batch as it is: a larger global batch."""

    num_gpus: int
    num_nodes: int
    looked: Looked
    efficiency: float | None
    """Tokens/s of a GPU over those of a GPU in the smallest of these sizes that may fit; None: it does not fit."""


@dataclass(frozen=True)
class Explained:
    """A cell, its prediction and everything that it is made from."""

    cell_id: str
    axes: Mapping[str, Any]
    because: str
    """Why the plan drops it; empty: it runs."""
    forecast: Forecast
    looked: Looked
    largest: int | None
    """Micro-batch that fits for certain; None: not even one sample does."""
    largest_perhaps: int | None
    """Micro-batch that fits with the shortest samples and no fragmentation."""
    scaling: tuple[Scaled, ...]

    @property
    def time(self) -> Time | None:
        """Return the time of an update."""
        return self.looked.time


def explain(cell_id: str, axes: Mapping[str, Any], because: str, forecaster: Forecaster) -> Explained:
    """Look at one cell."""
    looked = forecaster.look(axes)
    return Explained(
        cell_id=cell_id,
        axes=axes,
        because=because,
        forecast=forecaster.of(axes),
        looked=replace(looked, memory=with_formulas(looked.setting, forecaster.figures.constants)),
        largest=forecaster.largest(axes),
        largest_perhaps=forecaster.largest(axes, must_fit=False),
        scaling=tuple(_scaling(forecaster, looked.setting)),
    )


def _scaling(forecaster: Forecaster, setting: Setting) -> Iterator[Scaled]:
    """Yield the cell on 1, 2, 4, ... GPUs; of one without a strategy for several, only itself."""
    own = int(setting.axes["gpus"])
    sizes = sorted({own, *(2**power for power in range(MOST_GPUS.bit_length()))})
    first: float | None = None
    for num_gpus in [own] if setting.axes["strategy"] == "single" else sizes:
        there = forecaster.look_at(scaled(setting, num_gpus))
        is_there = there.time is not None and there.verdict != "predicted_oom"
        each = there.time.tokens_per_s / num_gpus if there.time is not None and is_there else None
        first = each if first is None else first
        nodes = math.ceil(num_gpus / setting.machine.gpus_per_node)
        share = None if each is None or first is None else each / first
        yield Scaled(num_gpus, nodes, there, share)


def document_of(one: Explained) -> dict[str, Any]:
    """Return an explanation as JSON, in SI units; every number in it is predicted."""
    predicted, memory, time = one.forecast.predicted, one.looked.memory, one.time
    gpu = one.looked.setting.machine.gpu
    return {
        "schema_version": 1,
        "cell_id": one.cell_id,
        "axes": dict(one.axes),
        "because": one.because,
        "gpu": {"name": gpu.name, "usable_bytes": memory.usable_bytes, "source": gpu.source},
        "predicted": predicted.model_dump(mode="json"),
        "predicted_largest_micro_batch_size": one.largest,
        "predicted_largest_micro_batch_size_perhaps": one.largest_perhaps,
        "memory": {
            "longest_samples": _phases(memory),
            "shortest_samples": _phases(one.looked.least),
        },
        "time": None if time is None else _parts_of_time(time),
        "scaling": [_scaled(row) for row in one.scaling],
    }


def _phases(memory: Memory) -> dict[str, Any]:
    return {
        "verdict": memory.verdict,
        "predicted_allocated_bytes": memory.allocated_bytes,
        "predicted_reserved_low_bytes": memory.reserved_low_bytes,
        "predicted_reserved_high_bytes": memory.reserved_high_bytes,
        "phases": [
            {
                "name": phase.name,
                "is_peak": phase == memory.peak,
                "predicted_bytes": phase.total_bytes,
                "parts": [
                    {"name": part.name, "predicted_bytes": part.num_bytes, "formula": part.formula}
                    for part in phase.parts
                ],
            }
            for phase in memory.phases
        ],
    }


def _parts_of_time(time: Time) -> dict[str, Any]:
    return {
        "predicted_step_time_s": time.step_time_s,
        "predicted_tokens_per_s": time.tokens_per_s,
        "parts": [{"name": one.name, "predicted_s": one.time_s, "formula": one.formula} for one in time.parts],
    }


def _scaled(row: Scaled) -> dict[str, Any]:
    looked = row.looked
    return {
        "num_gpus": row.num_gpus,
        "num_nodes": row.num_nodes,
        "verdict": looked.verdict,
        "predicted_allocated_bytes": looked.memory.allocated_bytes,
        "predicted_step_time_s": None if looked.time is None else looked.time.step_time_s,
        "predicted_tokens_per_s": None if looked.time is None else looked.time.tokens_per_s,
        "predicted_efficiency": row.efficiency,
    }
