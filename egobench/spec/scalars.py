"""What a plain YAML word means, and the words that YAML reads as something else than it looks like."""

from __future__ import annotations

import math
import re
from typing import Any, Final

import yaml

_RESOLVER = yaml.resolver.Resolver()
_TAG = "tag:yaml.org,2002:"
_BOOLS: Final = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_PLAIN_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z")
_PLAIN_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?\Z|[-+]?\.[0-9][0-9_]*([eE][-+][0-9]+)?\Z")
_NUMBER = re.compile(r"(?P<sign>[-+]?)(?P<whole>[0-9]+)(\.(?P<rest>[0-9]*))?([eE](?P<power>[-+]?[0-9]+))?\Z")
_MOST_DIGITS = 30


class Misread(Exception):
    """A word that YAML reads as something else than it looks like; its text says what to do."""


def read_plain(word: str) -> Any:
    """Return what YAML 1.1 makes of an unquoted word.

    Raises:
        Misread: a date, an octal, hexadecimal, binary or base-60 number, a NaN, an infinity.
    """
    tag = str(_RESOLVER.resolve(yaml.ScalarNode, word, (True, False))).removeprefix(_TAG)  # type: ignore[no-untyped-call]
    if tag == "null":
        return None
    if tag == "bool":
        return _BOOLS[word.lower()]
    if tag == "int":
        return _whole(word)
    if tag == "float":
        return _fraction(word)
    if tag == "timestamp":
        raise Misread(f"YAML reads {word} as a date; quote it: '{word}'")
    return word


def _whole(word: str) -> int:
    if not _PLAIN_INT.match(word):
        kind = "a base-60" if ":" in word else "an octal, hexadecimal or binary"
        raise Misread(f"YAML reads {word} as {kind} number; write a plain decimal number, or quote it: '{word}'")
    if len(word) > _MOST_DIGITS:
        raise Misread(f"a number of {len(word)} digits; no number here has more than {_MOST_DIGITS}")
    return int(word.replace("_", ""))


def _fraction(word: str) -> float:
    if ":" in word:
        raise Misread(f"YAML reads {word} as a base-60 number; write a plain decimal number, or quote it: '{word}'")
    value = float(word.replace("_", "")) if _PLAIN_FLOAT.match(word) else math.nan
    if not math.isfinite(value):
        raise Misread(f"{word} is not a finite number; write a finite one")
    return value


def read_anew(value: object, word: str | None, expected: str) -> str:
    """Say what to do about a value of the wrong type, where YAML's own reading is the likely reason.

    Args:
        value: what YAML read.
        word: the unquoted word it was read from; None: quoted, or no scalar.
        expected: `text` or `number`.
    """
    if expected == "text" and isinstance(value, bool) and word is not None:
        return f"YAML reads {word} as {str(value).lower()}; quote it: '{word}'"
    if expected == "text" and isinstance(value, int | float) and word is not None:
        return f"YAML reads {word} as a number; quote it: '{word}'"
    number = _NUMBER.match(value.strip()) if expected == "number" and isinstance(value, str) else None
    if number is None:
        return ""
    plain = f"{number['sign']}{number['whole']}"
    if number["rest"] or number["power"]:
        plain += f".{number['rest'] or '0'}"
    if number["power"]:
        plain += f"e{number['power'] if number['power'][0] in '+-' else '+' + number['power']}"
    return f"YAML reads it as text; write {plain}" if plain != value else f"it is quoted text; write {plain}"
