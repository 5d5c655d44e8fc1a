"""What can be wrong with `depends:`: a parent that does not exist, two of them, or cells that wait in a circle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from egobench.errors import Mistake
from egobench.plan.blocks import Block, restrict, varied_axes
from egobench.plan.parents import Parents, moved, shown
from egobench.spec.axes import AxisValue
from egobench.spec.layout import Dependency
from egobench.spec.matrix import LoadedMatrix

State = tuple[AxisValue, ...]
"""Values of the axes that `depends:` names; the others stay the same from a cell to its parent."""


def depends_mistakes(loaded: LoadedMatrix, parents: Parents) -> Iterator[Mistake]:
    """Yield everything that is wrong with the dependencies of a matrix."""
    if not loaded.matrix.depends:
        return
    for number, entry in enumerate(loaded.matrix.depends):
        yield from _self(loaded, parents, number, entry)
        yield from _missing(loaded, parents, number, entry)
        yield from _double(loaded, parents, number, entry)
    yield from _circles(loaded, parents)


def _self(loaded: LoadedMatrix, parents: Parents, number: int, entry: Dependency) -> Iterator[Mistake]:
    own = {axis: (value,) for axis, value in entry.parent.items()}
    if restrict(restrict(parents.trained, entry.where), own):
        what = f"selects cells that would wait for themselves: {shown(entry.parent)}"
        yield loaded.source.mistake(("depends", number, "where"), what, "other cells than the parent", "narrow where:")


def _missing(loaded: LoadedMatrix, parents: Parents, number: int, entry: Dependency) -> Iterator[Mistake]:
    """Yield a mistake if a selected cell has no parent in this matrix; the first such cell is shown."""
    for part in restrict(parents.trained, entry.where):
        point = parents.missing(moved(part, entry.parent))
        if point is None:
            continue
        names = dict.fromkeys((*varied_axes(loaded, parents.trained), *entry.parent))
        what = f"no cell of this matrix is {shown({axis: point[axis] for axis in names})}"
        allowed = "the parent is a cell with these values and otherwise the axes of the one that waits"
        yield loaded.source.mistake(("depends", number, "parent"), what, allowed, _todo(loaded, entry))
        return


def _todo(loaded: LoadedMatrix, entry: Dependency) -> str:
    for group in loaded.matrix.zip:
        if any(axis in entry.parent for axis in group) and any(axis not in entry.parent for axis in group):
            return f"{', '.join(group)} move together: name all of them"
    return "add that point, or narrow where:"


def _double(loaded: LoadedMatrix, parents: Parents, second: int, entry: Dependency) -> Iterator[Mistake]:
    for first in range(second):
        other = loaded.matrix.depends[first]
        both = restrict(restrict(parents.trained, entry.where), other.where)
        if both and (entry.needs != other.needs or not _same_parent(both, entry.parent, other.parent)):
            what = f"selects cells that depends[{first}] also selects, and asks for something else"
            yield loaded.source.mistake(("depends", second), what, "one parent per cell", "narrow one of them")


def _same_parent(blocks: tuple[Block, ...], one: Mapping[str, AxisValue], other: Mapping[str, AxisValue]) -> bool:
    """Tell whether all points of the blocks get the same parent from both."""
    if any(one[axis] != other[axis] for axis in one if axis in other):
        return False
    changed = [
        (axis, change[axis]) for change in (one, other) for axis in change if not (axis in one and axis in other)
    ]
    return all(block.values(axis) == (value,) for axis, value in changed for block in blocks)


def _circles(loaded: LoadedMatrix, parents: Parents) -> Iterator[Mistake]:
    """Yield a mistake per circle, at the first of its entries. A cell that waits for itself is no circle."""
    depends = loaded.matrix.depends
    axes = tuple(dict.fromkeys(name for entry in depends for name in (*entry.where, *entry.parent)))
    left = dict.fromkeys(state for block in parents.trained for state in _states(block, axes))
    told: set[frozenset[int]] = set()
    while left:
        state, way, numbers = left.popitem()[0], [], []
        while True:
            way.append(state)
            number, after = _next(depends, axes, state)
            if number is None or after == state:
                break
            numbers.append(number)
            if after in way:
                start = way.index(after)
                if frozenset(numbers[start:]) not in told:
                    told.add(frozenset(numbers[start:]))
                    yield _circle(loaded, axes, way[start:], numbers[start:])
                break
            if after not in left:
                break
            del left[after]
            state = after


def _circle(loaded: LoadedMatrix, axes: tuple[str, ...], way: list[State], numbers: list[int]) -> Mistake:
    start = numbers.index(min(numbers))
    states = [*way[start:], *way[:start]]
    names = [axis for place, axis in enumerate(axes) if len({state[place] for state in states}) > 1]
    words = [shown({axis: state[axes.index(axis)] for axis in names}) for state in (*states, states[0])]
    what = f"cells wait for each other in a circle: {' -> '.join(words)}"
    return loaded.source.mistake(("depends", min(numbers)), what, todo="remove one of these dependencies")


def _states(block: Block, axes: tuple[str, ...]) -> Iterator[State]:
    columns = []
    for one in block.dimensions:
        places = [place for place, name in enumerate(one.names) if name in axes]
        names = [one.names[place] for place in places]
        columns.append([dict(zip(names, values, strict=True)) for values in
                        dict.fromkeys(tuple(row[place] for place in places) for row in one.rows)])  # fmt: skip
    for parts in itertools.product(*columns):
        point = dict(block.fixed)
        for part in parts:
            point.update(part)
        yield tuple(point[axis] for axis in axes)


def _next(depends: tuple[Dependency, ...], axes: tuple[str, ...], state: State) -> tuple[int | None, State]:
    """Return the entry that a cell waits by, and its parent."""
    point = dict(zip(axes, state, strict=True))
    for number, entry in enumerate(depends):
        if all(point[axis] in values for axis, values in entry.where.items()):
            return number, tuple({**point, **entry.parent}[axis] for axis in axes)
    return None, state
