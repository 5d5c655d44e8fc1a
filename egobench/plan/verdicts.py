"""What holds for the points of a block: dropped and why, drilled and how, on how many GPUs.

Every exclusion, rule and drill looks at a few axes only. Here each is reduced to the dimensions it
reads, and those that never hold are forgotten, so that asking about a million points stays cheap.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from egobench.plan.blocks import Block
from egobench.plan.rules import RULES, Rule, Setting, surroundings
from egobench.records.trial import Drill
from egobench.spec.axes import AxisValue
from egobench.spec.layout import Where
from egobench.spec.matrix import LoadedMatrix

Index = tuple[int, ...]
"""A row of each dimension: one point of a block."""
MOST_INNER = 4096
"""Points that are written at once."""
_MOST_KNOWN = 2_000_000
"""Marks that are kept."""


class Mark(NamedTuple):
    """What the plan knows about one point beyond its axes."""

    because: str
    """Why it is dropped; empty: it runs."""
    drill: int | None
    """Which drill of the matrix it gets."""
    gpus: int


@dataclass(frozen=True)
class Finder:
    """Something that holds for some points of a block."""

    reads: tuple[int, ...]
    """Dimensions it looks at."""
    find: Callable[[Index], str]
    """Rows of those dimensions -> what to say, or an empty string."""


class Verdicts:
    """The marks of one block's points."""

    def __init__(self, block: Block, loaded: LoadedMatrix) -> None:
        self.block = block
        self.sizes = tuple(len(dimension.rows) for dimension in block.dimensions)
        self.split = _split(self.sizes)
        """Dimensions before it are walked one by one, those from it on are the inner points."""
        self._drops = [*_exclusions(block, loaded), *_rules(block, loaded)]
        self._drills = list(_drills(block, loaded))
        self._gpus = _gpus(block)
        reads = {place for finder in (*self._drops, *self._drills, self._gpus) for place in finder.reads}
        self._outer_reads = tuple(place for place in range(self.split) if place in reads)
        self._inner_reads = tuple(place for place in range(self.split, len(self.sizes)) if place in reads)
        self._distinct = math.prod(self.sizes[place] for place in self._inner_reads)
        """Inner points that can have different marks."""
        self._positions = self._positions_of_inner()
        self._known: dict[Index, list[Mark]] = {}

    def outer(self) -> Iterator[Index]:
        """Yield every row combination of the outer dimensions."""
        return itertools.product(*map(range, self.sizes[: self.split]))

    def inner(self) -> Iterator[Index]:
        """Yield every row combination of the inner dimensions."""
        return itertools.product(*map(range, self.sizes[self.split :]))

    def marks(self, outer: Index) -> Iterator[Mark]:
        """Return the marks of all inner points at one outer place."""
        return map(self._at(outer).__getitem__, self._positions)

    def counts(self) -> Counter[Mark]:
        """Count the block's points by mark, without writing them out."""
        total: Counter[Mark] = Counter()
        each = math.prod(self.sizes[self.split :]) // self._distinct
        for outer in self.outer():
            for mark in self._at(outer):
                total[mark] += each
        return total

    def _positions_of_inner(self) -> list[int]:
        """Return, for each inner point, the place of its mark among the distinct ones."""
        steps, step = dict.fromkeys(range(self.split, len(self.sizes)), 0), 1
        for place in reversed(self._inner_reads):
            steps[place] = step
            step *= self.sizes[place]
        weights = tuple(steps.values())
        return [sum(map(operator.mul, index, weights)) for index in self.inner()]

    def _at(self, outer: Index) -> list[Mark]:
        """Return the distinct marks at one outer place."""
        key = tuple(outer[place] for place in self._outer_reads)
        if key not in self._known:
            if len(self._known) * self._distinct > _MOST_KNOWN:
                self._known.clear()
            self._known[key] = self._marks_at(outer)
        return self._known[key]

    def _marks_at(self, outer: Index) -> list[Mark]:
        index = [*outer, *(0 for _ in self.sizes[self.split :])]
        marks = []
        for inner in itertools.product(*(range(self.sizes[place]) for place in self._inner_reads)):
            for place, row in zip(self._inner_reads, inner, strict=True):
                index[place] = row
            drill = _first(self._drills, index)
            gpus = int(_first([self._gpus], index))
            marks.append(Mark(_first(self._drops, index), int(drill) if drill else None, gpus))
        return marks


def _split(sizes: tuple[int, ...]) -> int:
    split, inner = len(sizes), 1
    while split and inner * sizes[split - 1] <= MOST_INNER:
        split -= 1
        inner *= sizes[split]
    return min(split, max(0, len(sizes) - 1))


def _first(finders: list[Finder], index: list[int]) -> str:
    for finder in finders:
        found = finder.find(tuple([index[place] for place in finder.reads]))
        if found:
            return found
    return ""


def _selection(block: Block, where: Where, say: str) -> Finder | None:
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
        finder = _selection(block, exclude.where, f"excluded at {file}:{line}: {exclude.because}")
        if finder is not None:
            yield finder


def _drills(block: Block, loaded: LoadedMatrix) -> Iterator[Finder]:
    for number, drill in enumerate(loaded.matrix.drills):
        finder = _selection(block, drill.where, str(number))
        if finder is not None:
            yield finder


def drill_at(loaded: LoadedMatrix, number: int | None) -> Drill | None:
    """Return a drill of the matrix as a record."""
    if number is None:
        return None
    placed = loaded.matrix.drills[number]
    return Drill(kind=placed.kind, rank=placed.rank, step=placed.step, phase=placed.phase)


def _rules(block: Block, loaded: LoadedMatrix) -> Iterator[Finder]:
    setting = surroundings(loaded.site, loaded.workloads[block.workload])
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


def _gpus(block: Block) -> Finder:
    if "gpus" in block.fixed:
        only = str(block.fixed["gpus"])
        return Finder((), lambda _: only)
    place = next(place for place, one in enumerate(block.dimensions) if "gpus" in one.names)
    dimension = block.dimensions[place]
    column = dimension.names.index("gpus")
    words = [str(row[column]) for row in dimension.rows]
    return Finder((place,), lambda index: words[index[0]])
