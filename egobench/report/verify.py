"""Derive every committed table again from its committed records, and say which differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from egobench.errors import InvalidInput, Mistake
from egobench.report.publish import RECORDS, derived_files, read_published


@dataclass(frozen=True)
class Checked:
    """One committed file, and the first line in which it differs; empty: it does not."""

    path: Path
    difference: str = ""


def verify_folders(paths: Sequence[Path]) -> list[Checked]:
    """Check every published sweep at or below the paths.

    Raises:
        InvalidInput: a path is missing.
    """
    checked = []
    for path in paths:
        if not path.exists():
            raise InvalidInput([Mistake(str(path), "no such file or folder", "a folder under results/")])
        below = path if path.is_dir() else path.parent
        folders = {file.parent for name in (RECORDS, "table.md", "summary.csv") for file in below.rglob(name)}
        for folder in sorted(folders):
            checked += verify_folder(folder)
    return checked


def verify_folder(folder: Path) -> list[Checked]:
    """Check one published sweep; records that cannot be read count as a difference."""
    try:
        derived = derived_files(read_published(folder), folder)
    except InvalidInput as error:
        return [Checked(folder / RECORDS, str(error))]
    return [Checked(folder / name, _difference(folder / name, text)) for name, text in derived.items()]


def _difference(path: Path, expected: str) -> str:
    if not path.exists():
        return "missing"
    present = path.read_bytes()
    if present == expected.encode():
        return ""
    pairs = zip(present.decode("utf-8", "replace").split("\n"), expected.split("\n"), strict=False)
    for number, (is_line, should_line) in enumerate(pairs, 1):
        if is_line != should_line:
            return f"line {number}: is {is_line[:160]!r}, the records say {should_line[:160]!r}"
    return "ends elsewhere than the records say"
