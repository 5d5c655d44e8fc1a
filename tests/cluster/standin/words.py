"""How the stand-in's commands read options and write times."""

from __future__ import annotations

import sys
from datetime import datetime

UNREACHABLE = "Unable to contact slurm controller (connect failure)"


def fail(text: str, code: int = 1) -> int:
    print(text, file=sys.stderr)
    return code


def parse(arguments: list[str], flags: set[str], stop: bool = False) -> tuple[dict[str, str], list[str]]:
    """Split options from the rest; `stop`: at the first word that is none."""
    options: dict[str, str] = {}
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if not equals and name not in flags and name not in LONG_FLAGS and waiting:
                value = waiting.pop(0)
            options[name] = value
        elif word.startswith("-") and len(word) > 1:
            letters = word[1:]
            while letters and letters[0] in flags:
                options[letters[0]], letters = "", letters[1:]
            if letters:
                options[letters[0]] = letters[1:] or waiting.pop(0)
        elif stop:
            return options, [word, *waiting]
        else:
            rest.append(word)
    return options, rest


LONG_FLAGS = {
    "parsable", "requeue", "no-requeue", "exclusive", "hold", "test-only", "kill-on-bad-exit", "noheader",
    "array-unique", "unbuffered", "overlap", "label", "export-all", "wait-all-nodes", "spread-job",
}  # fmt: skip


def clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def stamp(at: float | None) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%dT%H:%M:%S") if at else "Unknown"
