"""A matrix as blocks: a product of dimensions around fixed values, never the points themselves.

A block of a million points is a few short lists, so that selections, rules and counts cost what the
lists cost. Points are written out in `expand.py`, and only there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from egobench.spec.axes import AXES, AxisValue
from egobench.spec.layout import Where
from egobench.spec.matrix import LoadedMatrix
from egobench.spec.workload import Workload

VARIANT = "variant"
"""Axis that only the points of `variants:` have."""

Row = tuple[AxisValue, ...]


@dataclass(frozen=True)
class Dimension:
    """One axis, or several that move together; a row is one step along it."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]

    def matching(self, where: Mapping[str, tuple[AxisValue, ...]]) -> tuple[int, ...]:
        """Return the indices of the rows that a selection accepts."""
        tests = [(place, frozenset(where[name])) for place, name in enumerate(self.names) if name in where]
        return tuple(index for index, row in enumerate(self.rows) if all(row[place] in known for place, known in tests))


@dataclass(frozen=True)
class Block:
    """Points of one workload: its fixed axes, and the dimensions that are crossed."""

    workload: str
    fixed: Mapping[str, AxisValue]
    """Value of every axis that is in no dimension."""
    dimensions: tuple[Dimension, ...] = ()

    def values(self, axis: str) -> tuple[AxisValue, ...]:
        """Return the values that an axis takes, in order."""
        if axis in self.fixed:
            return (self.fixed[axis],)
        for dimension in self.dimensions:
            if axis in dimension.names:
                place = dimension.names.index(axis)
                return tuple(dict.fromkeys(row[place] for row in dimension.rows))
        return ()

    def restricted(self, where: Where) -> Block | None:
        """Return the part that a selection accepts, None where it accepts nothing."""
        for name, accepted in where.items():
            if name in self.fixed and self.fixed[name] not in accepted:
                return None
            if name not in self.fixed and not any(name in dimension.names for dimension in self.dimensions):
                return None
        kept = []
        for dimension in self.dimensions:
            rows = tuple(dimension.rows[index] for index in dimension.matching(where))
            if not rows:
                return None
            kept.append(replace(dimension, rows=rows))
        return replace(self, dimensions=tuple(kept))

    def contains(self, point: Mapping[str, AxisValue]) -> bool:
        """Tell whether a point (every axis given) is one of this block's."""
        return self.restricted({name: (value,) for name, value in point.items()}) is not None


def blocks_of(loaded: LoadedMatrix) -> tuple[Block, ...]:
    """Return the blocks of a matrix in the order in which it was written; no point stands in two of them."""
    return (*_product(loaded), *_included(loaded), *_variants(loaded))


def restrict(blocks: Iterable[Block], where: Where) -> tuple[Block, ...]:
    """Return the parts of blocks that a selection accepts."""
    parts = (block.restricted(where) for block in blocks)
    return tuple(part for part in parts if part is not None)


def varied_axes(loaded: LoadedMatrix, blocks: Iterable[Block]) -> tuple[str, ...]:
    """Return the axes that the matrix gives more than one value, in its order.

    An axis that differs only because the workloads' defaults do is told by the workload axis.
    """
    matrix = loaded.matrix
    groups: tuple[Mapping[str, object], ...] = (matrix.axes, *matrix.zip, *matrix.include)
    written = dict.fromkeys(name for group in groups for name in group)
    seen: dict[str, set[AxisValue]] = {name: set() for name in written}
    for block in blocks:
        for name in written:
            seen[name].update(block.values(name))
    return tuple(name for name in seen if len(seen[name]) > 1)


def _product(loaded: LoadedMatrix) -> Iterator[Block]:
    """Yield a block per value of the workload axis: defaults depend on the workload."""
    matrix = loaded.matrix
    if not matrix.axes and not matrix.zip:
        return
    dimensions = [Dimension((name,), tuple((value,) for value in values)) for name, values in matrix.axes.items()]
    dimensions += [Dimension(tuple(group), tuple(zip(*group.values(), strict=True))) for group in matrix.zip]
    outer = next((one for one in dimensions if "workload" in one.names), None)
    inner = tuple(one for one in dimensions if one is not outer)
    rows = [dict(zip(outer.names, row, strict=True)) for row in outer.rows] if outer is not None else [{}]
    for given in rows:
        name = str(given.get("workload", loaded.only_workload))
        taken = {axis for one in inner for axis in one.names}
        fixed = {
            axis: value for axis, value in resolve(given, name, loaded.workloads[name]).items() if axis not in taken
        }
        yield Block(name, fixed, inner)


def _included(loaded: LoadedMatrix) -> Iterator[Block]:
    """Yield a block per included point that is not a point of the product or of an earlier one."""
    product, seen = tuple(_product(loaded)), set()
    for given in loaded.matrix.include:
        name = str(given.get("workload", loaded.only_workload))
        point = resolve(given, name, loaded.workloads[name])
        key = tuple(point.values())
        if key not in seen and not any(block.contains(point) for block in product):
            seen.add(key)
            yield Block(name, point)


def _variants(loaded: LoadedMatrix) -> Iterator[Block]:
    made: dict[str | None, tuple[Block, ...]] = {None: (*_product(loaded), *_included(loaded))}
    for variant in loaded.matrix.variants:
        sources = restrict(made[variant.of], variant.where)
        made[variant.name] = tuple(replace(one, fixed={**one.fixed, VARIANT: variant.name}) for one in sources)
        yield from made[variant.name]


def source_of(loaded: LoadedMatrix, block: Block) -> dict[str, AxisValue]:
    """Return in which axis a variant differs from the cell that it is made from; nothing: from a trained cell."""
    made = next((one for one in loaded.matrix.variants if one.name == block.fixed.get(VARIANT)), None)
    return {} if made is None or made.of is None else {VARIANT: made.of}


def resolve(given: Mapping[str, AxisValue], name: str, workload: Workload) -> dict[str, AxisValue]:
    """Return a value for every axis: the matrix's, else the workload's default, else the axis's own."""
    recipe = workload.recipe
    of_workload: dict[str, AxisValue] = {
        "workload": name,
        "learning_rate": recipe.learning_rate,
        "num_steps": recipe.num_steps,
        "image_px": workload.image_px,
        "max_length": recipe.max_length,
    }
    point: dict[str, AxisValue] = {}
    for axis in AXES.values():
        value = given.get(axis.name, workload.defaults.get(axis.name, of_workload.get(axis.name, axis.default)))
        assert isinstance(value, str | int | float), f"axis {axis.name} has no default"
        point[axis.name] = value
    return point
