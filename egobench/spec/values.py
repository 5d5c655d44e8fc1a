"""Check what a document says about axes: names, values, lists of them, and selections by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from egobench.errors import Mistake, nearest
from egobench.spec.axes import AXES, Axis, AxisValue
from egobench.spec.mistakes import shown, unknown_key, wrong_type
from egobench.spec.source import Loc, Source

Values = tuple[AxisValue, ...]
Point = dict[str, AxisValue]


class AxisChecker:
    """Reads axis values out of one document, collects what is wrong and returns the rest."""

    def __init__(self, source: Source, mistakes: list[Mistake]) -> None:
        self.source = source
        self.mistakes = mistakes

    def axes(self, loc: Loc, raw: object) -> dict[str, Values]:
        """Check a mapping axis -> list of values."""
        checked: dict[str, Values] = {}
        for name, values in self.mapping(loc, raw).items():
            if self.is_axis((*loc, name)):
                checked[name] = self.values((*loc, name), AXES[name], values)
        return {name: values for name, values in checked.items() if values}

    def zips(self, loc: Loc, raw: object, crossed: Mapping[str, Any]) -> tuple[dict[str, Values], ...]:
        """Check a list of groups, each a mapping axis -> list of equal length."""
        groups: list[dict[str, Values]] = []
        taken: dict[str, str] = dict.fromkeys(crossed, "axes")
        for index, group in enumerate(self.listing(loc, raw)):
            here = (*loc, index)
            for name in group if isinstance(group, dict) else ():
                if name in taken:
                    todo = "keep one of the two"
                    what = f"'{name}' also stands in {taken[name]}"
                    self.mistakes.append(
                        self.source.mistake((*here, name), what, "an axis stands once", todo, key=True)
                    )
                taken[name] = f"zip[{index}]"
            groups.append(self.axes_of_group(here, group))
        return tuple(group for group in groups if group)

    def axes_of_group(self, loc: Loc, raw: object) -> dict[str, Values]:
        """Check one zip group; its lists may repeat a value, its rows must differ."""
        group: dict[str, Values] = {}
        for name, values in self.mapping(loc, raw).items():
            if self.is_axis((*loc, name)):
                group[name] = self.values((*loc, name), AXES[name], values, distinct=False)
        lengths = {name: len(values) for name, values in self.mapping(loc, raw, quiet=True).items() if _is_list(values)}
        if len(set(lengths.values())) > 1:
            what = "the lists differ in length: " + ", ".join(f"{name} {length}" for name, length in lengths.items())
            self.mistakes.append(self.source.mistake(loc, what, "lists of equal length", "add or remove values"))
            return {}
        rows = list(zip(*group.values(), strict=False))
        if len(set(rows)) < len(rows):
            self.mistakes.append(self.source.mistake(loc, "the same values stand together twice", todo="remove one"))
        return group

    def point(self, loc: Loc, raw: object, todo: str = "write one point per value, or use axes:") -> Point:
        """Check a mapping axis -> one value; `todo` is for those who write a list."""
        point: Point = {}
        for name, value in self.mapping(loc, raw).items():
            if not self.is_axis((*loc, name)):
                continue
            if _is_list(value):
                self.mistakes.append(self.source.mistake((*loc, name), "a list", "one value", todo))
                continue
            checked = self.value((*loc, name), AXES[name], value)
            if checked is not None:
                point[name] = checked
        return point

    def where(self, loc: Loc, raw: object) -> dict[str, Values]:
        """Check a selection: axis -> value or list of values."""
        selection: dict[str, Values] = {}
        for name, value in self.mapping(loc, raw).items():
            if not self.is_axis((*loc, name)):
                continue
            if _is_list(value):
                selection[name] = self.values((*loc, name), AXES[name], value)
            else:
                checked = self.value((*loc, name), AXES[name], value)
                selection[name] = () if checked is None else (checked,)
        return selection

    def is_axis(self, loc: Loc) -> bool:
        """Tell whether the key at `loc` names an axis, and note it if not."""
        if loc[-1] in AXES:
            return True
        self.mistakes.append(unknown_key(self.source, loc, list(AXES), "axis"))
        return False

    def values(self, loc: Loc, axis: Axis, raw: object, distinct: bool = True) -> Values:
        """Check a list of values of one axis."""
        if not isinstance(raw, list):
            todo = f"write [{raw}]" if isinstance(raw, str | int | float) and not isinstance(raw, bool) else ""
            self.mistakes.append(self.source.mistake(loc, f"{shown(raw)} is not a list", "a list of values", todo))
            return ()
        if not raw:
            self.mistakes.append(
                self.source.mistake(loc, "the list is empty", "at least one value", "or remove the axis")
            )
        found: list[AxisValue] = []
        seen: set[AxisValue] = set()
        for index, one in enumerate(raw):
            value = self.value((*loc, index), axis, one)
            if distinct and value in seen:
                self.mistakes.append(
                    self.source.mistake((*loc, index), f"{shown(value)} stands twice", todo="remove one")
                )
            elif value is not None:
                found.append(value)
                seen.add(value)
        return tuple(found)

    def value(self, loc: Loc, axis: Axis, raw: object) -> AxisValue | None:
        """Check one value of one axis; None where it is wrong."""
        if raw in axis.words:
            return str(raw)
        expected = {str: "text", int: "a whole number", float: "a number"}[axis.kind]
        fits = (int, float) if axis.kind is float else axis.kind
        if isinstance(raw, bool) or not isinstance(raw, fits):
            allowed = f"allowed: {', '.join(axis.table or axis.words)}" if axis.table or axis.words else ""
            mistake = wrong_type(self.source, loc, raw, expected, "text" if axis.kind is str else "number")
            self.mistakes.append(Mistake(mistake.where, mistake.what, allowed, mistake.todo))
            return None
        if axis.table is not None:
            return self._listed(loc, axis, axis.table, raw)
        if isinstance(raw, str):
            return raw
        assert isinstance(raw, int | float)
        low = raw <= axis.minimum if axis.kind is float else raw < axis.minimum
        if low:
            words = f"more than {axis.minimum}" if axis.kind is float else f"at least {axis.minimum}"
            self.mistakes.append(self.source.mistake(loc, f"{raw} is out of range", f"allowed: {words}"))
            return None
        return float(raw) if axis.kind is float else raw

    def _listed(self, loc: Loc, axis: Axis, table: Mapping[str, str | None], raw: object) -> AxisValue | None:
        if raw in table:
            return str(raw)
        article = "an" if axis.name[0] in "aeiou" else "a"
        what = f"{shown(raw)} is not {article} {axis.name}"
        hint = nearest(str(raw), table)
        self.mistakes.append(self.source.mistake(loc, what, f"allowed: {', '.join(table)}", hint))
        return None

    def mapping(self, loc: Loc, raw: object, quiet: bool = False) -> dict[str, Any]:
        """Return a mapping, or nothing and a mistake."""
        if isinstance(raw, dict):
            return raw
        if not quiet:
            self.mistakes.append(wrong_type(self.source, loc, raw, "a mapping of axes to values", ""))
        return {}

    def listing(self, loc: Loc, raw: object) -> list[Any]:
        """Return a list, or nothing and a mistake."""
        if isinstance(raw, list):
            return raw
        self.mistakes.append(wrong_type(self.source, loc, raw, "a list", ""))
        return []


def _is_list(value: object) -> bool:
    return isinstance(value, list)
