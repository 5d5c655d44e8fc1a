"""What a check of `egobench doctor` came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "failed", "not installed", "not checked"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    check: str
    """What was looked at, in a word or two."""
    verdict: Verdict
    what: str
    """What was found; for `not checked` why."""
    todo: str = ""
    """What to do about it."""


def ok(check: str, what: str) -> Finding:
    """Return that all is well."""
    return Finding(check, "ok", what)


def warning(check: str, what: str, todo: str = "") -> Finding:
    """Return what works, but not as it should."""
    return Finding(check, "warning", what, todo)


def failed(check: str, what: str, todo: str = "") -> Finding:
    """Return what will not work."""
    return Finding(check, "failed", what, todo)


def not_checked(check: str, why: str, todo: str = "") -> Finding:
    """Return what nobody knows, and why."""
    return Finding(check, "not checked", why, todo)
