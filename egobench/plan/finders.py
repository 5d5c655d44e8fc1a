"""What is asked about a point on its own: dropped and why, drilled and how, on how many GPUs.

Every exclusion, rule and drill looks at a few axes only. Here each is reduced to the dimensions it
reads, and those that never hold are forgotten, so that asking about a million points stays cheap.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, NamedTuple

from egobench.plan.blocks import VARIANT, Block
from egobench.plan.foresight import Foresight
from egobench.plan.rules import RULES, Rule, Setting, surroundings
from egobench.predict.forecast import Forecast
from egobench.records.outcome import OutcomeName
from egobench.records.trial import Drill
from egobench.spec.axes import AxisValue
from egobench.spec.layout import Where
from egobench.spec.matrix import LoadedMatrix

Index = tuple[int, ...]
"""A row of each dimension: one point of a block."""


class Wait(NamedTuple):
    """The parent of a point: the cell that it waits for."""

    entry: int | None
    """Which entry of `depends:` says so; None: the point is a variant of the parent."""
    needs: Literal["ok", "end"]
    drill: int | None
    """Which drill of the matrix the parent gets: a part of its id."""


class Mark(NamedTuple):
    """What the plan knows about one point beyond its axes."""

    dropped: str
    """Why it is dropped for another reason than its prediction; empty: it is not."""
    drill: int | None
    """Which drill of the matrix it gets."""
    gpus: int
    wait: Wait | None = None
    forecast: Forecast | None = None
    """None: the point is dropped for another reason."""
    is_pruned: bool = False
    """It is predicted not to fit, and not the baseline."""

    @property
    def runs(self) -> bool:
        """Tell whether the point is not dropped."""
        return not self.dropped and not self.is_pruned

    @property
    def because(self) -> str:
        """Return why the point is dropped; empty: it runs."""
        return self.forecast.oom if self.is_pruned and self.forecast is not None else self.dropped

    @property
    def outcome(self) -> OutcomeName:
        """Return what the plan says of the point."""
        if self.is_pruned:
            return "predicted_oom"
        return "incompatible" if self.dropped else "pending"

    @property
    def trial_s(self) -> float | None:
        """Return how long a trial is predicted to take."""
        return None if self.forecast is None else self.forecast.predicted_trial_s


@dataclass(frozen=True)
class Finder:
    """Something that holds for some points of a block."""

    reads: tuple[int, ...]
    """Dimensions it looks at."""
    find: Callable[[Index], str]
    """Rows of those dimensions -> what to say, or an empty string."""

    def at(self, index: Sequence[int]) -> str:
        """Return what it says about a whole point."""
        return self.find(self._rows(index))

    @functools.cached_property
    def _rows(self) -> Callable[[Sequence[int]], Index]:
        # itemgetter makes a tuple of two or more.
        return itemgetter(*self.reads) if len(self.reads) > 1 else lambda index: tuple(index[i] for i in self.reads)


class Finders:
    """Everything that is asked about the points of one block, but for their parents."""

    def __init__(self, block: Block, loaded: LoadedMatrix, foresight: Foresight) -> None:
        self._drops = [*_exclusions(block, loaded), *_rules(block, loaded)]
        self._drills = list(_drills(block, loaded))
        self._gpus = _gpus(block, loaded)
        self._foresight = foresight.of(block)
        # Comparing all cells with nothing would cost more than a baseline that fails: it runs, whatever is predicted.
        baseline = selection(block, loaded.matrix.baseline, "baseline") if loaded.matrix.baseline is not None else None
        self._kept = [baseline] if baseline is not None else []
        finders = (*self._drops, *self._drills, *self._kept, self._gpus)
        self.reads = {place for finder in finders for place in finder.reads} | set(self._foresight.reads)

    def mark(self, index: Sequence[int]) -> Mark:
        """Return the mark of one point, its parent left out."""
        found = _first(self._drills, index)
        drill, gpus = int(found) if found else None, int(self._gpus.at(index))
        if because := _first(self._drops, index):
            return Mark(because, drill, gpus)
        forecast = self._foresight.at(index)
        is_pruned = forecast.verdict == "predicted_oom" and not _first(self._kept, index)
        return Mark("", drill, gpus, None, forecast, is_pruned)


def _first(finders: list[Finder], index: Sequence[int]) -> str:
    for finder in finders:
        found = finder.at(index)
        if found:
            return found
    return ""


def selection(block: Block, where: Where, say: str) -> Finder | None:
    """Return a finder of the points that a selection accepts, None where it accepts none."""
    if block.restricted(where) is None:
        return None
    reads = tuple(place for place, one in enumerate(block.dimensions) if any(name in where for name in one.names))
    rows = [frozenset(block.dimensions[place].matching(where)) for place in reads]
    return Finder(reads, lambda index: say if all(row in known for row, known in zip(index, rows, strict=True)) else "")


def _exclusions(block: Block, loaded: LoadedMatrix) -> Iterator[Finder]:
    for number, exclude in enumerate(loaded.matrix.exclude):
        line = loaded.source.values[("exclude", number)][0]
        file = loaded.source.path.rsplit("/", 1)[-1]
        finder = selection(block, exclude.where, f"excluded at {file}:{line}: {exclude.because}")
        if finder is not None:
            yield finder


def _drills(block: Block, loaded: LoadedMatrix) -> Iterator[Finder]:
    for number, drill in enumerate(loaded.matrix.drills):
        finder = selection(block, drill.where, str(number))
        if finder is not None:
            yield finder


def drill_at(loaded: LoadedMatrix, number: int | None) -> Drill | None:
    """Return a drill of the matrix as a record."""
    if number is None:
        return None
    placed = loaded.matrix.drills[number]
    return Drill(kind=placed.kind, rank=placed.rank, step=placed.step, phase=placed.phase)


def _rules(block: Block, loaded: LoadedMatrix) -> Iterator[Finder]:
    setting = surroundings(loaded.site, loaded.workloads[block.workload], loaded.matrix.variants)
    for rule in RULES:
        finder = _rule(block, rule, setting)
        if finder is not None:
            yield finder


def _rule(block: Block, rule: Rule, setting: Callable[[Mapping[str, AxisValue]], Setting]) -> Finder | None:
    """Ask a rule once per combination of the rows it reads."""
    reads = tuple(place for place, one in enumerate(block.dimensions) if any(axis in one.names for axis in rule.axes))
    fixed = {axis: block.fixed[axis] for axis in rule.axes if axis in block.fixed}
    dimensions = [block.dimensions[place] for place in reads]
    if len(fixed) + sum(axis in one.names for one in dimensions for axis in rule.axes) < len(rule.axes):
        return None  # an axis that this block does not have
    reasons: dict[Index, str] = {}
    for index in itertools.product(*(range(len(one.rows)) for one in dimensions)):
        at = dict(fixed)
        for one, row in zip(dimensions, index, strict=True):
            at.update((name, value) for name, value in zip(one.names, one.rows[row], strict=True) if name in rule.axes)
        reason = rule.reason(setting(at))
        if reason:
            reasons[index] = reason
    return Finder(reads, lambda index: reasons.get(index, "")) if reasons else None


def _gpus(block: Block, loaded: LoadedMatrix) -> Finder:
    alone = {one.name for one in loaded.matrix.variants if one.is_alone}
    if "gpus" in block.fixed or block.fixed.get(VARIANT) in alone:
        only = "1" if block.fixed.get(VARIANT) in alone else str(block.fixed["gpus"])
        return Finder((), lambda _: only)
    place = next(place for place, one in enumerate(block.dimensions) if "gpus" in one.names)
    dimension = block.dimensions[place]
    column = dimension.names.index("gpus")
    words = [str(row[column]) for row in dimension.rows]
    return Finder((place,), lambda index: words[index[0]])
