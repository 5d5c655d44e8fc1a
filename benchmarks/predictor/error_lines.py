"""Signed errors as cells of a scoreboard's table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

CELLS = "n | median of abs. error | 90th percentile | bias"


def error_cells(errors: Sequence[float]) -> str:
    """Return what stands under `CELLS`."""
    absolute = sorted(map(abs, errors))
    tenth = absolute[min(len(absolute) - 1, int(0.9 * len(absolute)))]
    return f"{len(errors)} | {statistics.median(absolute):.1%} | {tenth:.1%} | {statistics.median(errors):+.1%}"


def error_line(*names: str, errors: Sequence[float]) -> str:
    """Return a line under `error_head` of as many names."""
    return f"| {' | '.join(names)} | {error_cells(errors)} | {min(errors):+.0%} to {max(errors):+.0%} |"


def error_head(*names: str) -> list[str]:
    """Return the head of a table of errors, and the line below it."""
    return [f"| {' | '.join(names)} | {CELLS} | range |", "|---" * (len(names) + 5) + "|"]
