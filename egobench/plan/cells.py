"""Write out the points of a matrix: ids, axes, outcome and reason of every cell.

Cells come as tuples of text, made from fragments that are formatted once per axis value: a million
of them take seconds and no memory. `expand.py` turns them into records.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from types import MappingProxyType

from egobench.errors import InvalidInput, Mistake
from egobench.plan.blocks import VARIANT, Block, blocks_of, restrict, source_of, varied_axes
from egobench.plan.depends import depends_mistakes
from egobench.plan.finders import Index, Mark, Wait, drill_at
from egobench.plan.identity import (
    HASH_DIGITS,
    SLUG_AXES,
    head_of_identity,
    slug_word,
    tail_of_identity,
    workload_digest,
)
from egobench.plan.parents import Parents
from egobench.plan.verdicts import Verdicts
from egobench.spec.axes import AxisValue
from egobench.spec.keep import Profile
from egobench.spec.layout import Where
from egobench.spec.matrix import LoadedMatrix
from egobench.spec.mistakes import in_order
from egobench.spec.source import Loc
from egobench.spec.variants import lineage

CellText = tuple[str, str, Mark, str]
"""Id, axes as JSON members (sorted, without braces), mark, id of the parent (empty: none)."""


@dataclass(frozen=True)
class Expansion:
    """A checked matrix, ready to be written out."""

    loaded: LoadedMatrix
    blocks: tuple[Block, ...]
    varied: tuple[str, ...]
    """Axes with more than one value, in the matrix's order."""
    baselines: dict[str, str]
    """Workload -> cell_id of its baseline; a workload that the baseline does not select has none."""
    parents: Parents = field(repr=False, compare=False)
    _known: list[Verdicts] = field(default_factory=list, repr=False, compare=False)
    """Kept between counting and writing."""

    def cells(self, only: Where | None = None) -> Iterator[CellText]:
        """Yield every cell that `only` selects, in the order in which the matrix was written."""
        digests = _digests(self.loaded)
        for verdicts in self._verdicts(only):
            yield from _write(verdicts, self.loaded, digests)

    def counts(self, only: Where | None = None) -> Counter[Mark]:
        """Count the cells by what happens to them, without writing them out."""
        total: Counter[Mark] = Counter()
        for verdicts in self._verdicts(only):
            total.update(verdicts.counts())
        return total

    def _verdicts(self, only: Where | None) -> Iterator[Verdicts]:
        if only is not None:
            return (Verdicts(block, self.loaded, self.parents) for block in restrict(self.blocks, only))
        if len(self._known) != len(self.blocks):
            self._known[:] = [Verdicts(block, self.loaded, self.parents) for block in self.blocks]
        return iter(self._known)


def expand(loaded: LoadedMatrix) -> Expansion:
    """Resolve a matrix into blocks and find its baselines.

    Raises:
        InvalidInput: a selection that selects nothing, overlapping drills, not one baseline cell per workload,
            cells that wait for none, for two, or in a circle.
    """
    blocks = blocks_of(loaded)
    mistakes = [*_idle_selections(loaded, blocks), *_double_drills(loaded, blocks)]
    parents = Parents(loaded, blocks)
    misled = list(depends_mistakes(loaded, parents))
    if misled:  # what waits for nothing, or for itself, has no fate to ask about
        parents = Parents(replace(loaded, matrix=loaded.matrix.model_copy(update={"depends": ()})), blocks)
    baselines, wrong = _baselines(loaded, blocks, parents)
    mistakes += [*misled, *wrong]
    if mistakes:
        raise InvalidInput(in_order(mistakes))
    return Expansion(loaded, blocks, varied_axes(loaded, blocks), baselines, parents)


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


def _digests(loaded: LoadedMatrix) -> dict[str, str]:
    return {name: workload_digest(workload) for name, workload in loaded.workloads.items()}


class _Identity:
    """The texts that ids are made of: of a block's points, or of the cells that these wait for."""

    def __init__(
        self,
        verdicts: Verdicts,
        loaded: LoadedMatrix,
        digests: Mapping[str, str],
        change: Mapping[str, AxisValue] = MappingProxyType({}),
        without: str = "",
    ) -> None:
        """Write points with some axes changed, and without the one called `without`."""
        block = verdicts.block
        names = sorted({*block.fixed, *(name for one in block.dimensions for name in one.names)} - {without})
        members = [(name, f'"{name}":') for name in names]
        self.axes = _Template(members, ",", verdicts, lambda axis, value: json.dumps(change.get(axis, value)))
        words = [(name, "") for name in SLUG_AXES if name in names]
        self.slugs = _Template(words, "-", verdicts, lambda axis, value: slug_word(axis, change.get(axis, value)))
        digest = digests[str(change.get("workload", block.workload))]
        drills = (None, *range(len(loaded.matrix.drills)))
        variant = None if without == VARIANT else change.get(VARIANT, block.fixed.get(VARIANT))
        line = lineage(loaded.matrix.variants, str(variant)) if variant is not None else ()
        self.tails = {number: tail_of_identity(drill_at(loaded, number), digest, line) for number in drills}


class _ParentIds:
    """Writes the ids of the cells that a block's points wait for."""

    def __init__(self, verdicts: Verdicts, loaded: LoadedMatrix, digests: Mapping[str, str]) -> None:
        self._verdicts, self._loaded, self._digests = verdicts, loaded, digests
        self._head = head_of_identity()
        self._known: dict[int | None, _Identity] = {}

    def at(self, outer: Index, place: int, wait: Wait) -> str:
        """Return the id of the parent of the inner point number `place`."""
        if wait.entry not in self._known:
            change = source_of(self._loaded, self._verdicts.block)
            if wait.entry is not None:
                change = self._loaded.matrix.depends[wait.entry].parent
            without = VARIANT if not change else ""
            self._known[wait.entry] = _Identity(self._verdicts, self._loaded, self._digests, change, without)
        identity = self._known[wait.entry]
        members = identity.axes.at(outer) % identity.axes.inner[place]
        name = sha256(f"{self._head}{members}{identity.tails[wait.drill]}".encode()).hexdigest()
        return f"{identity.slugs.at(outer) % identity.slugs.inner[place]}-{name[:HASH_DIGITS]}"


def _write(verdicts: Verdicts, loaded: LoadedMatrix, digests: Mapping[str, str]) -> Iterator[CellText]:
    """Yield the cells of one block."""
    identity, parents = _Identity(verdicts, loaded, digests), _ParentIds(verdicts, loaded, digests)
    axes, slugs, tails, head = identity.axes, identity.slugs, identity.tails, head_of_identity()
    for outer in verdicts.outer():
        axes_text, slug_text = axes.at(outer), slugs.at(outer)
        points = enumerate(zip(axes.inner, slugs.inner, verdicts.marks(outer), strict=True))
        for place, (values, words, mark) in points:
            members = axes_text % values
            name = sha256(f"{head}{members}{tails[mark[1]]}".encode()).hexdigest()
            parent = "" if mark[3] is None else parents.at(outer, place, mark[3])
            yield f"{slug_text % words}-{name[:HASH_DIGITS]}", members, mark, parent


def _idle_selections(loaded: LoadedMatrix, blocks: tuple[Block, ...]) -> Iterator[Mistake]:
    """Yield a mistake per selection that selects nothing."""
    matrix = loaded.matrix
    for section, selections in {
        "exclude": [entry.where for entry in matrix.exclude],
        "depends": [entry.where for entry in matrix.depends],
        "drills": [entry.where for entry in matrix.drills],
        "variants": [entry.where for entry in matrix.variants],
    }.items():
        for number, where in enumerate(selections):
            if not restrict(blocks, where):
                yield _idle(loaded, (section, number, "where"), where, blocks)
    if matrix.profile is not None:
        yield from _idle_profile(loaded, matrix.profile, blocks)


def _idle(loaded: LoadedMatrix, loc: Loc, where: Where, blocks: tuple[Block, ...]) -> Mistake:
    what = "selects no point of this matrix"
    return loaded.source.mistake(loc, what, _values_there(where, blocks), "change or remove it")


def _idle_profile(loaded: LoadedMatrix, profile: Profile, blocks: tuple[Block, ...]) -> Iterator[Mistake]:
    """Yield a mistake for a profile of no cell, and per step that no cell of it takes."""
    watched = restrict(blocks, profile.where)
    if not watched:
        yield _idle(loaded, ("profile", "where"), profile.where, blocks)
        return
    most = max(int(value) for block in watched for value in block.values("num_steps"))
    for index, step in enumerate(profile.steps):
        if step >= most:
            what, allowed = (
                f"{step}, but no cell that is profiled has more than {most} steps",
                f"allowed: 0 to {most - 1}",
            )
            yield loaded.source.mistake(("profile", "steps", index), what, allowed)


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


def _baselines(
    loaded: LoadedMatrix, blocks: tuple[Block, ...], parents: Parents
) -> tuple[dict[str, str], list[Mistake]]:
    """Find the one runnable cell that the baseline selects of each workload that it selects anything of."""
    where = loaded.matrix.baseline
    if where is None:
        return {}, []
    selected: dict[str, list[Block]] = {}
    for block in restrict(parents.trained, where):
        selected.setdefault(block.workload, []).append(block)
    if not selected:
        return {}, [_no_baseline(loaded, "selects no cell", _values_there(where, blocks))]
    found: dict[str, str] = {}
    mistakes = []
    for workload, parts in selected.items():
        runnable, dropped = _runnable(parts, loaded, parents)
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


def _runnable(blocks: list[Block], loaded: LoadedMatrix, parents: Parents) -> tuple[list[str], str]:
    """Return the ids of the first few runnable cells, and the reason of the first dropped one."""
    ids: list[str] = []
    reason = ""
    for verdicts in (Verdicts(block, loaded, parents) for block in blocks):
        counts = verdicts.counts()
        reason = reason or next((mark.because for mark in counts if not mark.runs), "")
        if any(mark.runs for mark in counts):
            cells = _write(verdicts, loaded, _digests(loaded))
            ids += itertools.islice((cell_id for cell_id, _, mark, _ in cells if mark.runs), 9)
        if len(ids) > 8:
            break
    return ids, reason
