"""The marks of a block's points: all of them in order, or counted, at the cost of the distinct ones."""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter
from collections.abc import Iterator
from typing import Final

from egobench.plan.blocks import Block
from egobench.plan.finders import Finders, Index, Mark
from egobench.plan.parents import Parents
from egobench.spec.matrix import LoadedMatrix

MOST_INNER: Final = 4096
"""Points that are written at once."""
_MOST_KNOWN: Final = 2_000_000
"""Marks that are kept."""


class Verdicts:
    """The marks of one block's points."""

    def __init__(self, block: Block, loaded: LoadedMatrix, parents: Parents) -> None:
        self.block = block
        self.sizes = tuple(len(dimension.rows) for dimension in block.dimensions)
        self.split = _split(self.sizes)
        """Dimensions before it are walked one by one, those from it on are the inner points."""
        self._finders = Finders(block, loaded, parents.foresight)
        self._waits = parents.waits(block)
        reads = self._finders.reads | (self._waits.reads if self._waits is not None else set())
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
            mark = self._finders.mark(index)
            marks.append(mark if self._waits is None else self._waits.judge(index, mark))
        return marks


def _split(sizes: tuple[int, ...]) -> int:
    split, inner = len(sizes), 1
    while split and inner * sizes[split - 1] <= MOST_INNER:
        split -= 1
        inner *= sizes[split]
    return min(split, max(0, len(sizes) - 1))
