"""What the tabs show of a sweep: the report's own numbers, laid out for a screen. Nothing is derived here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from egobench.records.measures import Kernels
from egobench.records.store import SweepPaths
from egobench.report.charts import label
from egobench.report.ground import describe_ground, system_name
from egobench.report.markdown import ledger_sum, memory_label, sample_text
from egobench.report.metrics import COLUMNS, KERNEL_PARTS, METRICS
from egobench.report.rows import CellRow, SweepRows
from egobench.report.variant_tables import variant_table
from egobench.report.variants import score_of, variant_rows
from egobench.report.verdict import decide
from egobench.serve.html import render
from egobench.serve.sources import Source

MOST_CELLS: Final = 200
"""Lines of a table; the full report has all of them."""
_MOST_KERNELS: Final = 12
_BARS: Final = ("tokens_per_s", "peak_memory_bytes", "f1_after", "em_after")
CHARTS: Final = ("pareto", "accuracy", "memory", "split", "loss")


def performance(source: Source, rows: SweepRows) -> str:
    """Return the Performance tab of a sweep."""
    columns = rows.columns((*COLUMNS, "final_loss"))
    return render(
        "performance",
        source=source,
        sweep=rows.sweep,
        system=system_name(rows),
        verdict=decide(rows),
        ground=describe_ground(rows),
        ledger=f"Cells: {ledger_sum(rows.ledger)}. Trials: {ledger_sum(rows.trial_ledger)}.",
        sample=sample_text(rows.sweep.trials),
        headers=[_header(rows, name) for name in columns],
        lines=[_line(rows, cell, columns) for cell in rows.trained[:MOST_CELLS]],
        num_more=max(0, len(rows.trained) - MOST_CELLS),
        variants=variant_table(variant_rows(rows), score_of(rows)),
        has_numbers=any(cell.num_ok for cell in rows.trained),
        charts=",".join(CHARTS),
    )


def _header(rows: SweepRows, name: str) -> str:
    header = METRICS[name].header
    return header.replace("Peak memory", memory_label(rows)) if name == "peak_memory_bytes" else header


def _line(rows: SweepRows, cell: CellRow, columns: Sequence[str]) -> dict[str, Any]:
    return {
        "label": label(rows, cell),
        "cell": cell,
        "is_baseline": cell is rows.baseline_of(cell),
        "numbers": [_number(rows, cell, name) for name in columns],
    }


def _number(rows: SweepRows, cell: CellRow, name: str) -> dict[str, Any]:
    summary = cell.summary(name)
    if summary is None:
        return {"text": "", "range": "", "share": None}
    text, _, spread = METRICS[name].show(summary).partition(" ")
    share = None
    if name in _BARS:
        most = max(other.value for one in rows.trained if (other := one.summary(name)) is not None)
        share = round(100 * summary.value / most) if most > 0 else None
    return {"text": text, "range": spread, "share": share}


def profile(source: Source, rows: SweepRows) -> str:
    """Return the Profile tab of a sweep."""
    profiled = [cell for cell in rows.cells if cell.summary(KERNEL_PARTS[0]) is not None]
    return render(
        "profile",
        source=source,
        sweep=rows.sweep,
        headers=[METRICS[name].header for name in KERNEL_PARTS],
        lines=[
            {
                "label": label(rows, cell), "cell": cell, "traces": _traces(source, cell), "kernels": _kernels(cell),
                "numbers": [_number(rows, cell, name) for name in KERNEL_PARTS],
            }
            for cell in profiled[:MOST_CELLS]
        ],
        num_without=len(rows.trained) - len(profiled),
        most=_MOST_KERNELS,
    )  # fmt: skip


def _kernels(cell: CellRow) -> Kernels | None:
    """Return the kernel table of the first trial that has one."""
    measured = (row.document.measures for row in cell.trials if row.document is not None)
    return next((one.kernels for one in measured if one is not None and one.kernels is not None), None)


def _traces(source: Source, cell: CellRow) -> list[str]:
    """Return the trace files of a cell, below the folder of its sweep."""
    if source.is_published:
        return []
    paths = SweepPaths(source.folder)
    found = (path for row in cell.trials for path in paths.trial(cell.cell_id, row.trial).profile.glob("*"))
    return sorted(str(path) for path in found if path.is_file())
