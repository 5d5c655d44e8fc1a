"""The errors a user can act on, each with the exit code that the CLI returns for it.

Anything that is not an `EgobenchError` is our bug and shows a traceback (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

EXIT_OK = 0
EXIT_BUG = 1
EXIT_INVALID_INPUT = 2
EXIT_TRIALS_FAILED = 3
EXIT_VERDICT_FAILED = 4
EXIT_ENVIRONMENT = 5
EXIT_AGAIN = 75
"""Of a worker: its allocation is to be started again. Source: sysexits.h, EX_TEMPFAIL."""
EXIT_INTERRUPTED = 130


class EgobenchError(Exception):
    """A problem that the user can fix; its text says where, what, what is allowed and what to do."""

    exit_code = EXIT_INVALID_INPUT


@dataclass(frozen=True)
class Mistake:
    """One thing wrong in what a person wrote."""

    where: str
    """`file:line:column`, or a path, or the name of an argument."""
    what: str
    """What is wrong, with the value."""
    allowed: str = ""
    """What would have been right."""
    todo: str = ""
    """What to do about it."""

    def __str__(self) -> str:
        return f"{self.where}: " + "; ".join(part for part in (self.what, self.allowed, self.todo) if part)


class InvalidInput(EgobenchError):
    """Everything wrong with one input, reported at once."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


class EnvironmentProblem(EgobenchError):
    """The machine lacks something: no GPU, a full disk, a package that is not installed."""

    exit_code = EXIT_ENVIRONMENT


class SweepBusy(EgobenchError):
    """Another `egobench sweep` already drives this folder."""

    exit_code = EXIT_ENVIRONMENT


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else ""
