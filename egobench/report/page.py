"""The report as one HTML file: no network, no server, opens from file://."""

from __future__ import annotations

import base64
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

import jinja2

from egobench.records.outcome import FAILED, NOT_RUN, OUTCOMES
from egobench.report.charts import (
    CURVE_CELLS,
    FEATURED_CELLS,
    Spec,
    accuracy_chart,
    effects_chart,
    featured,
    kernels_chart,
    loss_chart,
    memory_chart,
    pareto_chart,
    split_chart,
    usage_chart,
)
from egobench.report.effects import EFFECT_METRICS, Effect, effects
from egobench.report.ground import describe_ground, slug
from egobench.report.markdown import effect_text, ledger_sum, memory_label, ratio_mark, sample_text
from egobench.report.metrics import COLUMNS, METRICS
from egobench.report.predicted import FATES, HEADING, foretold, predicted_csv
from egobench.report.publish import download_records
from egobench.report.rows import CellRow, SweepRows
from egobench.report.stats import paired_ratio
from egobench.report.usage import KINDS, MOST_REASONS, UsageTable, heading, relaunches, usage_csv, usage_table
from egobench.report.variant_tables import CATEGORY_NOTE, variant_table
from egobench.report.variants import VariantRow, score_of, variant_rows
from egobench.report.verdict import CellVerdict, SweepVerdict, decide, not_compared_text
from egobench.units import format_bytes

_BARS: Final = ("tokens_per_s", "peak_memory_bytes")
"""Columns with a bar behind the number."""
_LOG_TAILS: Final = 40
"""Failures whose log is shown in the page; of the others the path is."""
SIGNS: Final = dict(
    zip(
        OUTCOMES,
        ("ok", "OM", "HM", "TO", "HG", "PR", "NF", "CR", "DV", "PF", "--", "pO", "CA", "..", ">>"),
        strict=True,
    )
)
"""Two letters per outcome, so that the map does not speak by colour alone."""


def html_page(rows: SweepRows, variants: Sequence[VariantRow] | None = None) -> str:
    """Return the page of scrubbed rows (`scrub_rows`); without variant rows, they are computed."""
    verdict, found, usage = decide(rows), effects(rows), usage_table(rows)
    chosen, curves = (featured(rows, verdict, limit) for limit in (FEATURED_CELLS, CURVE_CELLS))
    charts = charts_of(rows, verdict, found, usage)
    return template("page.html.j2").render(
        rows=rows,
        sweep=rows.sweep,
        not_compared=not_compared_text(rows.not_compared),
        verdict=verdict,
        mark={True: "yes", False: "no", None: "open"},
        ranked=[_verdict_line(rows, one) for one in verdict.ranked(12)],
        ground=describe_ground(rows),
        ledger=_ledger(rows),
        ledger_text=f"Cells: {ledger_sum(rows.ledger)}. Trials: {ledger_sum(rows.trial_ledger)}.",
        sample=sample_text(rows.sweep.trials),
        memory=memory_label(rows),
        table=_table(rows),
        effect_rows=_effect_rows(found),
        variants=variant_table(variant_rows(rows) if variants is None else variants, score_of(rows)),
        category_note=CATEGORY_NOTE,
        outcome_map=_outcome_map(rows),
        failures=_failures(rows),
        dropped=_dropped(rows),
        foretold=foretold(rows),
        foretold_heading=HEADING,
        fates=FATES,
        predicted_download=base64.b64encode(predicted_csv(rows).encode()).decode(),
        usage=usage,
        usage_heading=heading(rows),
        usage_words=KINDS,
        usage_download=base64.b64encode(usage_csv(rows).encode()).decode(),
        relaunched=relaunches(rows),
        most_reasons=MOST_REASONS,
        num_featured=len(chosen),
        num_curves=len(curves),
        window=_window(rows),
        charts=charts,
        charts_json=script_json(charts),
        download=base64.b64encode(download_records(rows)).decode(),
        file_stem=slug(rows.sweep.name),
        assets=assets(),
    )


def charts_of(
    rows: SweepRows, verdict: SweepVerdict, found: Sequence[Effect], usage: UsageTable | None
) -> dict[str, Spec]:
    """Return the charts that there is something to draw in, in the order of the page."""
    chosen, curves = (featured(rows, verdict, limit) for limit in (FEATURED_CELLS, CURVE_CELLS))
    charts = {
        "pareto": pareto_chart(rows, verdict),
        "effects": effects_chart(found),
        "split": split_chart(rows, chosen),
        "kernels": kernels_chart(rows, chosen),
        "memory": memory_chart(rows, chosen),
        "loss": loss_chart(rows, curves),
        "accuracy": accuracy_chart(rows, chosen),
        "usage": usage_chart(usage),
    }
    return {name: spec for name, spec in charts.items() if spec}


@cache
def template(name: str) -> jinja2.Template:
    """Return one of the report's templates; text in it is escaped."""
    loader = jinja2.PackageLoader("egobench.report", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(name)


@cache
def assets() -> tuple[str, ...]:
    """Return the scripts that draw."""
    folder = files("egobench.report") / "assets"
    return tuple((folder / name).read_text(encoding="utf-8") for name in ("vega.min.js", "vega-lite.min.js"))


def script_json(value: Any) -> str:
    """Return JSON that is safe inside <script> and that JSON.parse reads: no NaN, no `<`."""
    text = json.dumps(_finite(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _verdict_line(rows: SweepRows, one: CellVerdict) -> Spec:
    checks = [{"reached": check.reached, "text": (check.text or "no data").partition(" ")} for check in one.checks]
    return {"label": _combination(one.cell, rows.varied), "id": one.cell.cell_id, "verdict": one, "checks": checks}


def _ledger(rows: SweepRows) -> list[Spec]:
    return [
        {"name": name, "count": count, "share": 100 * count / max(1, len(rows.cells)), "sign": SIGNS[name]}
        for name, count in rows.ledger.items()
        if count and name in SIGNS
    ]


def _table(rows: SweepRows) -> Spec:
    columns = rows.columns((*COLUMNS, "final_loss"))
    most = {name: max((s.value for c in rows.cells if (s := c.summary(name))), default=0) for name in _BARS}
    return {
        "columns": [_column(rows, name) for name in columns],
        "axes": [{"name": name, "values": _distinct(rows, name)} for name in rows.varied],
        "outcomes": list(dict.fromkeys(cell.outcome for cell in rows.cells)),
        "cells": [_table_row(rows, cell, columns, most) for cell in rows.cells],
    }


def _column(rows: SweepRows, name: str) -> Spec:
    metric = METRICS[name]
    text = memory_label(rows) if name == "peak_memory_bytes" else metric.label
    return {"name": name, "label": text, "unit": metric.shown_unit or metric.unit}


def _distinct(rows: SweepRows, name: str) -> list[Any]:
    values = {cell.axis_text(name): cell.axes.get(name) for cell in rows.cells}
    return sorted(values, key=lambda text: (isinstance(values[text], str), values[text]))


def _table_row(rows: SweepRows, cell: CellRow, columns: Sequence[str], most: dict[str, float]) -> Spec:
    numbers = []
    for name in columns:
        summary = cell.summary(name) if cell.outcome not in FAILED else None
        share = round(100 * summary.value / most[name]) if summary and most.get(name) else None
        text = METRICS[name].show(summary).partition(" ") if summary else ("", "", "")
        numbers.append(
            {"value": f"{summary.value:.5g}" if summary else "", "text": text[0], "range": text[2], "share": share}
        )
    return {
        "cell": cell,
        "axes": [cell.axis_text(name) for name in rows.varied],
        "numbers": numbers,
        "ratio": _ratio(cell, rows.baseline_of(cell)),
        "is_baseline": cell is rows.baseline_of(cell),
    }


def _ratio(cell: CellRow, base: CellRow | None) -> Spec:
    ratio = None
    if base is not None and base.comparable and cell.comparable and cell is not base:
        ratio = paired_ratio(cell.values("tokens_per_s"), base.values("tokens_per_s"))
    none = "not compared" if base is None else ""
    text = ratio_mark(ratio).partition(" ") if ratio else (none, "", "")
    return {"value": f"{ratio.value:.5g}" if ratio else "", "text": text[0], "range": text[2]}


def _effect_rows(found: Sequence[Effect]) -> list[Spec]:
    by_change: dict[tuple[str, str], dict[str, Effect]] = {}
    for effect in found:
        by_change.setdefault((effect.axis, effect.change), {})[effect.metric] = effect
    return [
        {
            "axis": axis,
            "change": change,
            "texts": [effect_text(one[name]) if name in one else "" for name in EFFECT_METRICS],
            "pairs": max(effect.num_pairs for effect in one.values()),
        }
        for (axis, change), one in by_change.items()
    ]


def _outcome_map(rows: SweepRows) -> Spec:
    """Lay the matrix out: the last axes across (16 columns at most), the others down."""
    across: tuple[str, ...] = ()
    for name in reversed(rows.varied):
        if len(across) + 1 == len(rows.varied) or _num_combinations(rows, (name, *across)) > 16:
            break
        across = (name, *across)
    down = tuple(name for name in rows.varied if name not in across)
    columns = list(dict.fromkeys(_combination(cell, across) for cell in rows.cells))
    lines: dict[str, dict[str, list[CellRow]]] = defaultdict(lambda: defaultdict(list))
    for cell in rows.cells:
        lines[_combination(cell, down)][_combination(cell, across)].append(cell)
    return {
        "across": " / ".join(across),
        "down": " / ".join(down),
        "columns": columns,
        "lines": [(name, [cells.get(column, []) for column in columns]) for name, cells in lines.items()],
        "signs": SIGNS,
    }


def _combination(cell: CellRow, names: Sequence[str]) -> str:
    return " / ".join(str(cell.axes.get(name)) for name in names)


def _num_combinations(rows: SweepRows, names: Sequence[str]) -> int:
    return len({_combination(cell, names) for cell in rows.cells})


def _failures(rows: SweepRows) -> list[Spec]:
    lines: list[Spec] = []
    for cell in rows.cells:
        failed = [row for row in cell.trials if row.outcome in FAILED]
        if not failed:
            continue
        first, document = failed[0], cell.first_failure()
        failure = document.failure if document else None
        log = f"{cell.cell_id}/{first.trial}/log/{failure.rank if failure else 0}.err"
        if first.outcome == "parent_failed":
            log = ""  # it was never launched
        asked = [failure.requested_bytes, failure.free_bytes] if failure else [None, None]
        lines.append(
            {
                "cell": cell, "label": _combination(cell, rows.varied), "num_failed": len(failed),
                "failure": failure, "log": log,
                "asked": [format_bytes(one) if one is not None else "" for one in asked],
                "tail": (failure.log_tail or failure.traceback)[-1500:] if failure and len(lines) < _LOG_TAILS else "",
            }
        )  # fmt: skip
    return lines


def _dropped(rows: SweepRows) -> list[tuple[str, str, int]]:
    counted: dict[tuple[str, str], int] = defaultdict(int)
    for cell in rows.cells:
        if cell.outcome in NOT_RUN:
            counted[cell.outcome, cell.because] += 1
    return [(outcome, because, count) for (outcome, because), count in counted.items()]


def _window(rows: SweepRows) -> str:
    """Say over which steps the numbers go."""
    measured = [one.measures for one in rows.documents() if one.outcome == "ok" and one.measures is not None]
    if not measured:
        return "no trial has finished yet"
    first = sorted({one.steady_first_step for one in measured})
    count = sorted({one.num_steady_steps for one in measured})
    return f"{_between(count)} steps, from step {_between(first)} on"


def _between(values: Sequence[int]) -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]}-{values[-1]}"
