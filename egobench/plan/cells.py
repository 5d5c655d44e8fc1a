"""Write out the points of a matrix: ids, axes, outcome and reason of every cell.

Cells come as tuples of text, made from fragments that are formatted once per axis value: a million
of them take seconds and no memory. `expand.py` turns them into records.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from egobench.errors import InvalidInput, Mistake
from egobench.plan.blocks import Block, blocks_of, restrict, varied_axes
from egobench.plan.identity import (
    HASH_DIGITS,
    SLUG_AXES,
    head_of_identity,
    slug_word,
    tail_of_identity,
    workload_digest,
)
from egobench.plan.verdicts import Index, Mark, Verdicts, drill_at
from egobench.spec.axes import AxisValue
from egobench.spec.layout import Where
from egobench.spec.matrix import LoadedMatrix

CellText = tuple[str, str, Mark]
"""Id, axes as JSON members (sorted, without braces), mark."""


@dataclass(frozen=True)
class Expansion:
    """A checked matrix, ready to be written out."""

    loaded: LoadedMatrix
    blocks: tuple[Block, ...]
    varied: tuple[str, ...]
    """Axes with more than one value, in the matrix's order."""
    baselines: dict[str, str]
    """Workload -> cell_id of its baseline; a workload that the baseline does not select has none."""
    _known: list[Verdicts] = field(default_factory=list, repr=False, compare=False)
    """Kept between counting and writing."""

    def cells(self, only: Where | None = None) -> Iterator[CellText]:
        """Yield every cell that `only` selects, in the order in which the matrix was written."""
        digests = {name: workload_digest(workload) for name, workload in self.loaded.workloads.items()}
        for verdicts in self._verdicts(only):
            yield from _write(verdicts, self.loaded, digests[verdicts.block.workload])

    def counts(self, only: Where | None = None) -> Counter[Mark]:
        """Count the cells by what happens to them, without writing them out."""
        total: Counter[Mark] = Counter()
        for verdicts in self._verdicts(only):
            total.update(verdicts.counts())
        return total

    def _verdicts(self, only: Where | None) -> Iterator[Verdicts]:
        if only is not None:
            return (Verdicts(block, self.loaded) for block in restrict(self.blocks, only))
        if len(self._known) != len(self.blocks):
            self._known[:] = [Verdicts(block, self.loaded) for block in self.blocks]
        return iter(self._known)


def expand(loaded: LoadedMatrix) -> Expansion:
    """Resolve a matrix into blocks and find its baselines.

    Raises:
        InvalidInput: a selection that selects nothing, overlapping drills, not one baseline cell per workload.
    """
    blocks = blocks_of(loaded)
    mistakes = [*_idle_selections(loaded, blocks), *_double_drills(loaded, blocks)]
    baselines, wrong = _baselines(loaded, blocks)
    mistakes += wrong
    if mistakes:
        raise InvalidInput(mistakes)
    return Expansion(loaded, blocks, varied_axes(loaded, blocks), baselines)


class _Template:
    """A text with a place for each varied axis, filled in two steps: outer dimensions, then inner ones."""

    def __init__(
        self,
        parts: Iterable[tuple[str, str]],
        between: str,
        verdicts: Verdicts,
        word: Callable[[str, AxisValue], str],
    ) -> None:
        """Build the text of `parts`: pairs of an axis and what stands before its value."""
        block, split = verdicts.block, verdicts.split
        places = {axis: number for number, one in enumerate(block.dimensions) for axis in one.names}
        texts: list[str] = []
        outer: list[str] = []
        inner: list[str] = []
        for axis, before in parts:
            if axis not in places:
                texts.append(before + word(axis, block.fixed[axis]).replace("%", "%%%%"))
            else:
                texts.append(before + ("%s" if places[axis] < split else "%%s"))
                (outer if places[axis] < split else inner).append(axis)
        self._text = between.join(texts)
        self._outer = [(places[axis], _words(block, places[axis], axis, word)) for axis in outer]
        columns = [(places[axis] - split, _words(block, places[axis], axis, word)) for axis in inner]
        self.inner = [tuple(words[index[place]] for place, words in columns) for index in verdicts.inner()]
        """What each inner point fills in."""

    def at(self, outer: Index) -> str:
        """Return the text with its outer places filled."""
        return self._text % tuple(words[outer[place]].replace("%", "%%") for place, words in self._outer)


def _words(block: Block, place: int, axis: str, word: Callable[[str, AxisValue], str]) -> list[str]:
    dimension = block.dimensions[place]
    column = dimension.names.index(axis)
    return [word(axis, row[column]) for row in dimension.rows]


def _write(verdicts: Verdicts, loaded: LoadedMatrix, digest: str) -> Iterator[CellText]:
    """Yield the cells of one block."""
    block = verdicts.block
    names = sorted({*block.fixed, *(name for one in block.dimensions for name in one.names)})
    axes = _Template([(name, f'"{name}":') for name in names], ",", verdicts, lambda _, value: json.dumps(value))
    slugs = _Template([(name, "") for name in SLUG_AXES if name in names], "-", verdicts, slug_word)
    head = head_of_identity()
    drills = (None, *range(len(loaded.matrix.drills)))
    tails = {number: tail_of_identity(drill_at(loaded, number), digest) for number in drills}
    for outer in verdicts.outer():
        axes_text, slug_text = axes.at(outer), slugs.at(outer)
        for values, words, mark in zip(axes.inner, slugs.inner, verdicts.marks(outer), strict=True):
            members = axes_text % values
            name = sha256(f"{head}{members}{tails[mark[1]]}".encode()).hexdigest()
            yield f"{slug_text % words}-{name[:HASH_DIGITS]}", members, mark


def _idle_selections(loaded: LoadedMatrix, blocks: tuple[Block, ...]) -> Iterator[Mistake]:
    """Yield a mistake per selection that selects nothing."""
    matrix = loaded.matrix
    for section, selections in {
        "exclude": [entry.where for entry in matrix.exclude],
        "drills": [entry.where for entry in matrix.drills],
        "variants": [entry.where for entry in matrix.variants],
    }.items():
        for number, where in enumerate(selections):
            if not restrict(blocks, where):
                what, loc = "selects no point of this matrix", (section, number, "where")
                yield loaded.source.mistake(loc, what, _values_there(where, blocks), "change or remove it")


def _values_there(where: Where, blocks: tuple[Block, ...]) -> str:
    """Say which values the axes of a selection really take."""
    taken = {axis: dict.fromkeys(str(value) for block in blocks for value in block.values(axis)) for axis in where}
    return "there are " + "; ".join(f"{axis} {', '.join(list(values)[:12])}" for axis, values in taken.items())


def _double_drills(loaded: LoadedMatrix, blocks: tuple[Block, ...]) -> Iterator[Mistake]:
    drills = loaded.matrix.drills
    for second, drill in enumerate(drills):
        for first in range(second):
            if restrict(restrict(blocks, drill.where), drills[first].where):
                what = f"selects cells that drills[{first}] also selects"
                yield loaded.source.mistake(("drills", second), what, "one drill per cell", "narrow one of them")


def _baselines(loaded: LoadedMatrix, blocks: tuple[Block, ...]) -> tuple[dict[str, str], list[Mistake]]:
    """Find the one runnable cell that the baseline selects of each workload that it selects anything of."""
    where = loaded.matrix.baseline
    if where is None:
        return {}, []
    selected: dict[str, list[Block]] = {}
    for block in restrict(blocks, where):
        selected.setdefault(block.workload, []).append(block)
    if not selected:
        return {}, [_no_baseline(loaded, "selects no cell", _values_there(where, blocks))]
    found: dict[str, str] = {}
    mistakes = []
    for workload, parts in selected.items():
        runnable, dropped = _runnable(parts, loaded)
        if len(runnable) == 1:
            found[workload] = runnable[0]
        elif runnable:
            names = ", ".join(runnable[:8]) + (", ..." if len(runnable) > 8 else "")
            what, todo = f"selects more than one cell of workload {workload!r}", f"name more axes; it selects {names}"
            mistakes.append(_no_baseline(loaded, what, todo))
        else:
            what, todo = f"selects only cells of workload {workload!r} that cannot run", f"the first one: {dropped}"
            mistakes.append(_no_baseline(loaded, what, todo))
    return found, mistakes


def _no_baseline(loaded: LoadedMatrix, what: str, todo: str) -> Mistake:
    return loaded.source.mistake(("baseline",), what, "exactly one cell that runs per workload", todo)


def _runnable(blocks: list[Block], loaded: LoadedMatrix) -> tuple[list[str], str]:
    """Return the ids of the first few runnable cells, and the reason of the first dropped one."""
    ids: list[str] = []
    reason = ""
    for verdicts in (Verdicts(block, loaded) for block in blocks):
        counts = verdicts.counts()
        reason = reason or next((mark.because for mark in counts if mark.because), "")
        if any(not mark.because for mark in counts):
            cells = _write(verdicts, loaded, workload_digest(loaded.workloads[verdicts.block.workload]))
            ids += itertools.islice((cell_id for cell_id, _, mark in cells if not mark.because), 9)
        if len(ids) > 8:
            break
    return ids, reason
