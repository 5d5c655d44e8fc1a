"""Anybody's table of published runs against both closed forms.

    python -m benchmarks.predictor.table THEIRS.csv

prints how far off memory and tokens/s are, source by source and row by row, and why a row is left out. It needs the
columns of `columns.REQUIRED`, and reads others of `measured_training.csv` where they are there. A source that
`published.py` does not describe is read by its columns alone. Without a table, the handed-out one is read so, as if
nobody had looked at any of its sources: that page is `table.md`, next to this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.predictor import score, score_time
from benchmarks.predictor.error_lines import error_head, error_line
from benchmarks.predictor.published import Published, read
from benchmarks.predictor.rows import write
from egobench.errors import InvalidInput

HERE: Final = Path(__file__).parent
HEADING: Final = """\
# The published rows, read by their columns alone

Made by `python -m benchmarks.predictor.table`; do not edit. Signed error is predicted / measured - 1. Here nothing is
known of a source but what its columns say: no loop is described but by its name, and what no column states is taken to
be as in transformers' Trainer. It is what a table gets that nobody has looked at, but for constants, which stem from
some of these rows: memory from fms and swift, time from Mosaic, fms and answer.ai.
`python -m benchmarks.predictor.table THEIRS.csv` does the same for another table."""


def _errors(named: Sequence[tuple[tuple[str, ...], float]], *heads: str) -> list[str]:
    if not named:
        return ["Nothing measured of what can be predicted."]
    groups: dict[tuple[str, ...], list[float]] = {}
    for name, error in named:
        groups.setdefault(name, []).append(error)
    lines = [error_line(*name, errors=errors) for name, errors in sorted(groups.items())]
    rest = [""] * (len(heads) - 1)
    return [*error_head(*heads), *lines, error_line("**all**", *rest, errors=[error for _, error in named])]


def _source(row: Published) -> str:
    return row.source.removesuffix(".csv") or "(no source_csv)"


def _worst_first(memory: Sequence[score.Scored], time: Sequence[score_time.Scored], most: int | None) -> list[str]:
    lines = [
        (abs(one.error), f"| {one.error:+.0%} | {(one.row.memory_bytes or 0) / 1e9:.1f} GB {one.row.memory_kind} "
         f"| {one.predicted_bytes / 1e9:.1f} GB | {_source(one.row)}:{one.row.line} {one.row.name} |")
        for one in memory if one.error is not None
    ] + [
        (abs(one.error), f"| {one.error:+.0%} | {one.measured_per_s:,.0f} tokens/s | {one.predicted_per_s:,.0f} "
         f"| {_source(one.row)}:{one.row.line} {one.row.name} |")
        for one in time
    ]  # fmt: skip
    lines.sort(key=lambda each: -each[0])
    return ["| error | measured | predicted | row |", "|---|---|---|---|", *(line for _, line in lines[:most])]


def page(rows: Sequence[Published], heading: str, most: int | None = None) -> str:
    """Return the page of some rows; `most`: of those that are listed one by one."""
    memory = [one for one in score.score(rows) if one.row.memory_kind != "soft"]
    time = [one for one in score_time.score(rows) if one.is_absolute]
    memory_errors = [((_source(one.row), one.row.memory_kind), one.error) for one in memory if one.error is not None]
    time_errors = [((_source(one.row),), one.error) for one in time]
    sections = [
        (heading, []),
        ("## Memory", _errors(memory_errors, "rows", "kind")),
        ("## The interval of reserved memory", score.intervals(memory)),
        ("## Fits, or out of memory", score.verdict_counts(memory)),
        ("## Tokens/s", _errors(time_errors, "rows")),
        ("## Rows, worst first" + (f": {most} of them" if most else ""), _worst_first(memory, time, most)),
        ("## Rows left out", score.left_out(rows)),
    ]
    return "\n".join("\n".join((title, "", *lines, "")) for title, lines in sections).replace("\n\n\n", "\n\n")


def committed() -> str:
    """Return the page of the handed-out table."""
    return page(read(by_columns=True), HEADING, most=20)


def main() -> None:
    """Print a page; of the handed-out table, write it too."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", nargs="?", type=Path, help="a table of published runs; without it: the handed-out one")
    path = parser.parse_args().path
    if path is None:
        write(HERE / "table.md", committed())
        return
    try:
        print(page(read(path), f"# {path}"))
    except (InvalidInput, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
