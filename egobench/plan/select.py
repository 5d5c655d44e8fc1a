"""`--only 'strategy=fsdp,gpus=4|8'`: read the text, tell which cells it selects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from egobench.errors import InvalidInput, Mistake, nearest
from egobench.spec.axes import AXES, Axis, AxisValue
from egobench.spec.layout import Where

_HOW = "write axis=value; a comma means and, '|' means or: strategy=fsdp,gpus=4|8"


def parse_only(text: str) -> Where:
    """Read a selection: `axis=value` parts joined by commas, values joined by `|`.

    Raises:
        InvalidInput: an unknown axis or value, or text that is no selection.
    """
    mistakes: list[Mistake] = []
    where: Where = {}
    for part in text.split(","):
        name, equals, values = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not values:
            mistakes.append(Mistake("--only", f"{part.strip()!r} is no selection", _HOW))
        elif name not in AXES:
            mistakes.append(
                Mistake("--only", f"'{name}' is not an axis", f"allowed: {', '.join(AXES)}", nearest(name, AXES))
            )
        elif name in where:
            mistakes.append(Mistake("--only", f"'{name}' is written twice", _HOW))
        else:
            where[name] = tuple(_values(AXES[name], values, mistakes))
    if mistakes:
        raise InvalidInput(mistakes)
    return where


def matches(where: Where, axes: Mapping[str, Any]) -> bool:
    """Tell whether a cell with these axes is selected."""
    return all(axes.get(name) in values for name, values in where.items())


def _values(axis: Axis, text: str, mistakes: list[Mistake]) -> list[AxisValue]:
    found: list[AxisValue] = []
    for word in (piece.strip() for piece in text.split("|")):
        value = _value(axis, word)
        if value is None or (axis.table is not None and value not in axis.table):
            article = "an" if axis.name[0] in "aeiou" else "a"
            allowed = f"allowed: {', '.join(axis.table)}" if axis.table else "expected a number"
            mistakes.append(
                Mistake("--only", f"'{word}' is not {article} {axis.name}", allowed, nearest(word, axis.table or ()))
            )
        else:
            found.append(value)
    return found


def _value(axis: Axis, word: str) -> AxisValue | None:
    if axis.kind is str or word in axis.words:
        return word or None
    try:
        return axis.kind(word)
    except ValueError:
        return None
