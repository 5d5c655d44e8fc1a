"""The long form of a sweep: one line per cell and metric, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, Final

from egobench.report.metrics import METRICS
from egobench.report.rows import CellRow, SweepRows
from egobench.report.stats import Summary
from egobench.spec.axes import AXES

CSV_SCHEMA: Final = 1
"""Raised when a column changes its meaning or its place."""
_TAIL: Final = (
    "metric", "value", "unit", "low", "high", "num_trials", "higher_is_better", "outcome", "schema_version",
)  # fmt: skip


def csv_header(rows: SweepRows) -> tuple[str, ...]:
    """Return the columns; an axis that is younger than the sweep is none of them."""
    return ("cell_id", *_axes(rows), *_TAIL)


def _axes(rows: SweepRows) -> tuple[str, ...]:
    return tuple(name for name in AXES if any(name in cell.axes for cell in rows.cells))


def summary_csv(rows: SweepRows) -> str:
    """Return `summary.csv`. Every planned cell has at least the line `num_ok_trials`, also one that never ran."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(csv_header(rows))
    for cell in rows.cells:
        writer.writerows(_cell_lines(cell, _axes(rows)))
    return stream.getvalue()


def _cell_lines(cell: CellRow, axes: tuple[str, ...]) -> Iterator[list[Any]]:
    head = [cell.cell_id, *(cell.axes.get(name, "") for name in axes)]
    tail = [cell.outcome, CSV_SCHEMA]
    yield [*head, "num_ok_trials", cell.num_ok, "1", "", "", len(cell.trials), "", *tail]
    for metric in METRICS.values():
        summary = cell.summary(metric.name)
        if summary is not None:
            direction = "" if metric.higher_is_better is None else str(metric.higher_is_better).lower()
            yield [*head, metric.name, *_numbers(summary, metric.unit), summary.num_trials, direction, *tail]


def _numbers(summary: Summary, unit: str) -> list[str]:
    return [exact(summary.value), unit, exact(summary.low), exact(summary.high)]


def exact(value: float | None) -> str:
    """Write a number with twelve significant digits: enough to compute with, the same on every platform."""
    return "" if value is None else f"{value:.12g}"
