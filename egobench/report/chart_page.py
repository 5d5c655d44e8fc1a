"""Some of the report's charts on a page of their own, to stand in another page; it loads nothing either."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from egobench.report.effects import effects
from egobench.report.page import assets, charts_of, script_json, template
from egobench.report.rows import SweepRows
from egobench.report.usage import usage_table
from egobench.report.verdict import decide

CAPTIONS: Final = {
    "pareto": "Throughput against memory: up and to the left is better",
    "effects": "What each axis does: right of 1 is more, left of 1 is less",
    "split": "Where a step's time goes",
    "kernels": "What a profiled step consists of, in the first rank",
    "memory": "What the peak consists of",
    "loss": "Loss, one line per trial",
    "accuracy": "F1 before and after training",
    "usage": "What the allocations' time went into",
}


def chart_page(rows: SweepRows, names: Collection[str]) -> str:
    """Return the page of scrubbed rows (`scrub_rows`) with those of the charts that have something to show."""
    found = charts_of(rows, decide(rows), effects(rows), usage_table(rows))
    charts = {name: spec for name, spec in found.items() if name in names}
    return template("charts.html.j2").render(
        name=rows.sweep.name,
        charts=charts,
        captions=CAPTIONS,
        charts_json=script_json(charts),
        assets=assets(),
    )
