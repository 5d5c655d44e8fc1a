"""From pydantic's complaints about a document to mistakes at their line and column."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from egobench.errors import Mistake, nearest
from egobench.spec.scalars import read_anew
from egobench.spec.source import Loc, Source

_EXPECTED: Final = {
    "int_type": ("a whole number", "number"),
    "int_from_float": ("a whole number", "number"),
    "float_type": ("a number", "number"),
    "float_parsing": ("a number", "number"),
    "string_type": ("text", "text"),
    "literal_error": ("text", "text"),
    "bool_type": ("true or false", ""),
    "tuple_type": ("a list", ""),
    "list_type": ("a list", ""),
    "dict_type": ("a mapping of keys to values", ""),
    "model_type": ("a mapping of keys to values", ""),
    "model_attributes_type": ("a mapping of keys to values", ""),
}
NAME_RULE: Final = "letters, digits, '.', '_' and '-', at most 64, the first a letter or digit"
_PLACE: Final = re.compile(r"(?P<file>.*?):(?P<line>\d+):(?P<column>\d+)")
_BOUNDS: Final = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def mistakes_of(error: ValidationError, source: Source, model: type[BaseModel], prefix: Loc = ()) -> list[Mistake]:
    """Return every complaint of pydantic as a mistake.

    Args:
        error: what pydantic said about the data at `prefix`.
        source: the document the data came from.
        model: the model it was validated against.
        prefix: where in the document the data stands.
    """
    return [_mistake(detail, source, model, prefix) for detail in error.errors(include_url=False)]


def _mistake(detail: ErrorDetails, source: Source, model: type[BaseModel], prefix: Loc) -> Mistake:
    kind, loc = detail["type"], detail["loc"]
    where = (*prefix, *loc)
    if kind == "extra_forbidden":
        fields = list(_model_at(model, loc[:-1]).model_fields)
        return unknown_key(source, where, fields)
    if kind == "missing":
        return _missing(source, model, prefix, loc)
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        limit = detail.get("ctx", {}).get(bound)
        return source.mistake(where, f"{shown(detail['input'])} is out of range", f"allowed: {words} {limit}")
    if kind in ("too_short", "too_long"):
        context = detail["ctx"]
        bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return source.mistake(where, f"{context['actual_length']} values", f"allowed: {bound}")
    if kind == "literal_error":
        return _not_listed(detail, source, where)
    if kind == "string_too_short":
        return source.mistake(where, "the text is empty", todo="write it")
    if kind == "string_pattern_mismatch":
        return source.mistake(where, f"{shown(detail['input'])} cannot be a name", NAME_RULE)
    if kind in _EXPECTED:
        expected, family = _EXPECTED[kind]
        return wrong_type(source, where, detail["input"], expected, family)
    return source.mistake(where, f"{shown(detail['input'])}: {detail['msg']}")


def _missing(source: Source, model: type[BaseModel], prefix: Loc, loc: Loc) -> Mistake:
    owner = _model_at(model, loc[:-1])
    if isinstance(loc[-1], int):
        return source.mistake((*prefix, *loc[:-1]), "the list is too short")
    about = owner.model_fields[loc[-1]].description or ""
    return source.mistake((*prefix, *loc[:-1]), f"'{loc[-1]}' is missing", about.split("\n")[0].rstrip("."), "add it")


def _not_listed(detail: ErrorDetails, source: Source, where: Loc) -> Mistake:
    value, allowed = detail["input"], str(detail.get("ctx", {}).get("expected", "")).replace("'", "")
    words = allowed.replace(" or ", ", ")
    hint = nearest(value, words.split(", ")) if isinstance(value, str) else ""
    hint = hint or read_anew(value, source.words.get(where), "text")
    return source.mistake(where, f"{shown(value)} is not one of the values", f"allowed: {words}", hint)


def in_order(mistakes: list[Mistake]) -> list[Mistake]:
    """Return mistakes file by file, each file from its top to its end."""
    files: dict[str, int] = {}

    def place(mistake: Mistake) -> tuple[int, int, int]:
        found = _PLACE.match(mistake.where)
        file = files.setdefault(found["file"] if found else mistake.where, len(files))
        return (file, int(found["line"]), int(found["column"])) if found else (file, 0, 0)

    return sorted(mistakes, key=place)


def unknown_key(source: Source, where: Loc, known: list[str], kind: str = "key") -> Mistake:
    """Return the mistake of a key that nobody knows, at the key itself."""
    name = str(where[-1])
    what = f"'{name}' is not a known {kind}"
    return source.mistake(where, what, f"allowed: {', '.join(known)}", nearest(name, known), key=True)


def wrong_type(source: Source, where: Loc, value: object, expected: str, family: str) -> Mistake:
    """Return the mistake of a value of the wrong type; `family` is `text`, `number` or empty."""
    word = source.words.get(where)
    todo = read_anew(value, word, family)
    if isinstance(value, float) and value.is_integer() and "whole" in expected:
        todo = f"write {int(value)}"
    return source.mistake(where, f"{shown(value)} is not {expected}", todo=todo)


def shown(value: object) -> str:
    """Return a value for a message, short."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _model_at(model: type[BaseModel], loc: Loc) -> type[BaseModel]:
    """Return the model that validates what stands at `loc`."""
    found: Any = model
    for part in loc:
        if isinstance(found, type) and issubclass(found, BaseModel):
            if not isinstance(part, str) or part not in found.model_fields:
                continue  # an index of a list of models
            found = found.model_fields[part].annotation
        found = next(_models_in(found), found)
    return found if isinstance(found, type) and issubclass(found, BaseModel) else model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Find the models named by an annotation such as `Recipe | None` or `tuple[Exclude, ...]`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)
