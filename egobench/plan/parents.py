"""Which cell a point waits for, and what became of that one: a point whose parent was dropped cannot run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from egobench.plan.blocks import VARIANT, Block, source_of
from egobench.plan.finders import Finder, Finders, Index, Mark, Wait, selection
from egobench.plan.foresight import Foresight
from egobench.spec.axes import AxisValue
from egobench.spec.matrix import LoadedMatrix

Point = Mapping[str, AxisValue]


class Parents:
    """The cells of a matrix as those that others wait for."""

    def __init__(self, loaded: LoadedMatrix, blocks: Sequence[Block]) -> None:
        self.loaded = loaded
        self.blocks = tuple(blocks)
        self.trained = tuple(block for block in blocks if VARIANT not in block.fixed)
        self.foresight = Foresight(loaded, self.blocks)
        self._known: dict[int, tuple[Finders, Waits | None]] = {}

    def waits(self, block: Block) -> Waits | None:
        """Return what its points wait for, None where none of them waits. A variant waits for its trained cell."""
        if VARIANT in block.fixed:
            return Waits(block, [(None, Finder((), lambda _: "variant"))], self)
        found = [
            (number, finder)
            for number, entry in enumerate(self.loaded.matrix.depends)
            if (finder := selection(block, entry.where, str(number))) is not None
        ]
        return Waits(block, found, self) if found else None

    def mark(self, point: Point) -> Mark:
        """Return the whole mark of a point of the matrix."""
        place = self._place(point)
        assert place is not None, "`depends.py` has refused what waits for no cell"
        number, index = place
        if number not in self._known:
            block = self.blocks[number]
            self._known[number] = Finders(block, self.loaded, self.foresight), self.waits(block)
        finders, waits = self._known[number]
        mark = finders.mark(index)
        return mark if waits is None else waits.judge(index, mark)

    def missing(self, image: Block) -> Point | None:
        """Return a point of `image` (a block as `moved` returns it) that is none of this matrix."""
        product = self._product_around(image)
        rest = _outside(image, product) if product is not None else _points(image)
        # A point outside its product can only be an included one, of which there are few.
        return next((point for point in rest if self._place(point) is None), None)

    @cached_property
    def axes_read(self) -> frozenset[str]:
        """Return the axes that decide what becomes of a parent."""
        names = {name for entry in self.loaded.matrix.depends for name in (*entry.where, *entry.parent)}
        for block in self.trained:
            if block.dimensions:
                for place in Finders(block, self.loaded, self.foresight).reads:
                    names.update(block.dimensions[place].names)
        if any(self._leaves_its_product(block) for block in self.trained):
            names.update(name for block in self.trained for one in block.dimensions for name in one.names)
        return frozenset(names)

    def _leaves_its_product(self, block: Block) -> bool:
        """Tell whether points of a product wait for included ones, which every axis decides about."""
        parts = ((block.restricted(entry.where), entry.parent) for entry in self.loaded.matrix.depends)
        images = [moved(part, parent) for part, parent in parts if part is not None]
        return bool(block.dimensions) and any(
            (product := self._product_around(image)) is None or next(_outside(image, product), None) is not None
            for image in images
        )

    def _place(self, point: Point) -> tuple[int, Index] | None:
        """Return where a point stands: the number of its block, and its row of each dimension."""
        key = tuple(sorted(point.items()))
        if key in self._single:
            return self._single[key], ()
        for number, rows in self._products.get(str(point["workload"]), ()):
            block = self.blocks[number]
            if point.get(VARIANT) == block.fixed.get(VARIANT) and all(
                point[axis] == value for axis, value in block.fixed.items()
            ):
                found = [
                    known.get(tuple([point[name] for name in one.names]))
                    for one, known in zip(block.dimensions, rows, strict=True)
                ]
                if None not in found:
                    return number, tuple(row for row in found if row is not None)
        return None

    @cached_property
    def _single(self) -> dict[tuple[tuple[str, AxisValue], ...], int]:
        alone = ((number, block) for number, block in enumerate(self.blocks) if not block.dimensions)
        return {tuple(sorted(block.fixed.items())): number for number, block in alone}

    @cached_property
    def _products(self) -> dict[str, list[tuple[int, list[dict[tuple[AxisValue, ...], int]]]]]:
        """Workload -> its products: number, and for each dimension row -> index."""
        found: dict[str, list[tuple[int, list[dict[tuple[AxisValue, ...], int]]]]] = {}
        for number, block in enumerate(self.blocks):
            if block.dimensions:
                rows = [{row: index for index, row in enumerate(one.rows)} for one in block.dimensions]
                found.setdefault(block.workload, []).append((number, rows))
        return found

    def _product_around(self, image: Block) -> Block | None:
        """Return the product whose fixed axes are those of `image`."""
        for number, _ in self._products.get(image.workload, ()):
            if self.blocks[number].fixed == image.fixed:
                return self.blocks[number]
        return None


class Waits:
    """The points of one block that wait for others."""

    def __init__(self, block: Block, entries: Sequence[tuple[int | None, Finder]], parents: Parents) -> None:
        self._block, self._entries, self._parents = block, entries, parents
        self.reads = {
            place
            for place, one in enumerate(block.dimensions)
            if any(name in parents.axes_read for name in one.names)
        }  # fmt: skip
        """Dimensions that decide whether a point waits and what becomes of its parent."""

    def judge(self, index: Sequence[int], mark: Mark) -> Mark:
        """Add to the mark of a point its parent, and that it cannot run if the parent cannot."""
        number = next((number for number, finder in self._entries if finder.at(index)), -1)
        if number == -1:
            return mark
        entry = self._parents.loaded.matrix.depends[number] if number is not None else None
        source = source_of(self._parents.loaded, self._block)
        parent = self._parents.mark(self._point(index, entry.parent if entry is not None else source))
        wait = Wait(number, entry.needs if entry is not None else "ok", parent.drill)
        if parent.runs or not mark.runs:
            return mark._replace(wait=wait)
        which = f"its parent ({shown(entry.parent)})" if entry is not None else "the cell that it is a variant of"
        return mark._replace(wait=wait, dropped=f"{which} was dropped: {parent.because}", forecast=None)

    def _point(self, index: Sequence[int], change: Point) -> Point:
        point = {axis: value for axis, value in self._block.fixed.items() if axis != VARIANT}
        for one, row in zip(self._block.dimensions, index, strict=True):
            point.update(zip(one.names, one.rows[row], strict=True))
        return {**point, **change}


def moved(block: Block, change: Point) -> Block:
    """Return the parents of a block's points, each once."""
    fixed = {axis: change.get(axis, value) for axis, value in block.fixed.items() if axis != VARIANT}
    dimensions = []
    for one in block.dimensions:
        rows = [tuple(map(change.get, one.names, row)) for row in one.rows]
        dimensions.append(replace(one, rows=tuple(dict.fromkeys(rows))))
    return Block(str(fixed["workload"]), fixed, tuple(dimensions))


def shown(change: Point) -> str:
    """Return `gpus 4, strategy ddp`."""
    return ", ".join(f"{axis} {value}" for axis, value in change.items())


def _points(block: Block) -> Iterator[Point]:
    for rows in itertools.product(*(one.rows for one in block.dimensions)):
        point = dict(block.fixed)
        for one, row in zip(block.dimensions, rows, strict=True):
            point.update(zip(one.names, row, strict=True))
        yield point


def _outside(image: Block, product: Block) -> Iterator[Point]:
    """Yield the points of a block that are not in another one of the same shape, without walking the others."""
    inside: list[tuple[tuple[AxisValue, ...], ...]] = []
    for place, (one, around) in enumerate(zip(image.dimensions, product.dimensions, strict=True)):
        known = frozenset(around.rows)
        without = tuple(row for row in one.rows if row not in known)
        within = [replace(image.dimensions[number], rows=rows) for number, rows in enumerate(inside)]
        yield from _points(
            replace(image, dimensions=(*within, replace(one, rows=without), *image.dimensions[place + 1 :]))
        )
        inside.append(tuple(row for row in one.rows if row in known))
