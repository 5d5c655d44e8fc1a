"""The committed table: Markdown that a stranger can read, generated between markers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from egobench.records.outcome import FAILED
from egobench.report.effects import EFFECT_METRICS, Effect, effects
from egobench.report.ground import describe_ground
from egobench.report.metrics import COLUMNS, METRICS, PARTS, show_summary
from egobench.report.predicted import FATES, HEADING, foretold
from egobench.report.rows import CellRow, SweepRows
from egobench.report.stats import INTERVAL_TRIALS, Summary, judge, paired_ratio
from egobench.report.usage import KINDS, MOST_REASONS, Relaunches, UsageLine, heading, relaunches, usage_table
from egobench.report.variant_tables import CATEGORY_NOTE, VariantTable, variant_table
from egobench.report.variants import VariantRow, score_of, variant_rows
from egobench.report.verdict import SweepVerdict, decide, not_compared_text

BEGIN: Final = (
    "<!-- egobench:begin schema=1; generated from records.jsonl, checked by `egobench verify`; do not edit -->"
)
END: Final = "<!-- egobench:end -->"
_BOLD: Final = ("tokens_per_s", "step_time_s", "peak_memory_bytes")
"""Accuracy is never bold: the best of many noisy numbers is luck more often than merit."""


@dataclass
class _Footnotes:
    """Reasons below a table, each told once."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f"[^{self.texts.index(text) + 1}]"

    def lines(self) -> list[str]:
        return [f"[^{number}]: {escape(text)}" for number, text in enumerate(self.texts, 1)]


def markdown_page(rows: SweepRows, variants: Sequence[VariantRow] | None = None, present: str = "") -> str:
    """Return `table.md`: the generated block, in place of the old block where `present` has one."""
    block = f"{BEGIN}\n{markdown_block(rows, variants)}\n{END}\n"
    start, end = present.find("<!-- egobench:begin"), present.find(END)
    if start < 0 or end < start:
        return f"# {escape(rows.sweep.name)}\n\n{block}"
    return present[:start] + block + present[end + len(END) :].removeprefix("\n")


def markdown_block(rows: SweepRows, variants: Sequence[VariantRow] | None = None) -> str:
    """Return everything between the markers; without variant rows, they are computed."""
    verdict = decide(rows)
    table = variant_table(variant_rows(rows) if variants is None else variants, score_of(rows))
    parts = [_verdict_text(verdict), _ground_text(rows), _ledger_text(rows), _caption(rows), _cells_table(rows)]
    parts += [
        _variants_text(table),
        _categories_text(table),
        _effects_table(effects(rows)),
        _parts_text(rows),
        _predicted_text(rows),
        _usage_text(rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _verdict_text(verdict: SweepVerdict) -> str:
    if not verdict.targets:
        return verdict.headline
    shown = verdict.ranked(10)
    lines = [f"**{escape(verdict.headline)}** Targets: {'; '.join(escape(one.text) for one in verdict.targets)}."]
    lines += [f"- `{one.cell.cell_id}`: {escape(one.because)}." for one in shown]
    if len(verdict.cells) > len(shown):
        lines.append(f"- and {len(verdict.cells) - len(shown)} more cells in the table below.")
    return "\n".join([lines[0], "", *lines[1:]]).rstrip()


def _ground_text(rows: SweepRows) -> str:
    ground = describe_ground(rows)
    if not ground.machines:
        return "No trial has run yet."
    sentences = [
        f"Hardware: {' / '.join(ground.machines)}; {ground.num_nodes} node{'s' if ground.num_nodes > 1 else ''}, "
        f"site `{rows.sweep.site_name}`.",
        f"Versions: {' / '.join(ground.versions)}.",
        f"Commit {' / '.join(ground.commits)}, {ground.dates}. Matrix `{rows.sweep.matrix}`.",
        *ground.warnings,
    ]
    return escape(" ".join(sentences), keep="`")


def ledger_sum(ledger: dict[str, int]) -> str:
    """Return `12 planned = 9 ok + 1 oom + 2 incompatible`."""
    counted = [f"{count} {name}" for name, count in ledger.items() if count and name != "planned"]
    return f"{ledger['planned']} planned = {' + '.join(counted) or '0'}"


def _ledger_text(rows: SweepRows) -> str:
    return f"Cells: {ledger_sum(rows.ledger)}. Trials: {ledger_sum(rows.trial_ledger)}."


def sample_text(num_trials: int) -> str:
    """Say how numbers with brackets are to be read."""
    if num_trials < 2:
        return "one trial each, so no range"
    if num_trials < INTERVAL_TRIALS:
        return f"median [range] of {num_trials} trials"
    return f"mean [95 % interval] of {num_trials} trials"


def memory_label(rows: SweepRows) -> str:
    """Name peak memory as what it is on this site."""
    return "Peak allocated" if rows.sweep.site.device == "cuda" else "Peak RSS growth"


def _caption(rows: SweepRows) -> str:
    fixed = ", ".join(f"{name} {value}" for name, value in rows.fixed.items() if value is not None)
    tail = f"Numbers are {sample_text(rows.sweep.trials)}, largest rank for memory; fastest and leanest"
    tail += " of each workload in bold." if len(rows.workloads) > 1 else " in bold."
    if rows.baselines:
        own = "the baseline of the same workload, " if len(rows.workloads) > 1 else ""
        names = ", ".join(f"`{one.cell_id}`" for one in rows.baselines)
        tail += f" Ratios are paired by trial with {own}{names}; ~ means no difference shown."
        tail += f" {escape(not_compared_text(rows.not_compared))}".rstrip()
    return f"**Held fixed: {escape(fixed) or 'nothing'}.** {tail}"


def _cells_table(rows: SweepRows) -> str:
    notes = _Footnotes()
    columns = rows.columns(COLUMNS)
    varied = [name for name in rows.varied if name != "variant"]
    headers = [*varied, *(_header(rows, name) for name in columns)]
    if rows.baselines:
        headers.insert(len(varied) + 1, "x baseline")
    best = {(workload, name): _best(rows, workload, name) for workload in rows.workloads for name in columns}
    lines = []
    for cell in rows.trained:
        numbers = _numbers(rows, cell, columns, best) if cell.comparable else _excuse(cell, notes)
        line = [*(escape(cell.axis_text(name)) for name in varied), *numbers]
        lines.append(line + [""] * (len(headers) - len(line)))
    aligns = ["--:" if _is_number(rows, name) else ":--" for name in varied]
    aligns += ["--:"] * (len(headers) - len(aligns))
    return "\n".join([_line(headers), _line(aligns), *map(_line, lines), "", *notes.lines()]).rstrip()


def _header(rows: SweepRows, name: str) -> str:
    header = METRICS[name].header
    return header.replace("Peak memory", memory_label(rows)) if name == "peak_memory_bytes" else header


def _is_number(rows: SweepRows, name: str) -> bool:
    return all(isinstance(cell.axes.get(name), int | float) for cell in rows.cells)


def _best(rows: SweepRows, workload: str, name: str) -> float | None:
    cells = [cell for cell in rows.cells if cell.workload == workload and cell.comparable]
    found = [summary.value for cell in cells if (summary := cell.summary(name)) is not None]
    if len(found) < 2 or name not in _BOLD:
        return None
    return max(found) if METRICS[name].higher_is_better else min(found)


def _numbers(
    rows: SweepRows, cell: CellRow, columns: Sequence[str], best: dict[tuple[str, str], float | None]
) -> list[str]:
    texts = []
    for name in columns:
        summary = cell.summary(name)
        shown = METRICS[name].show(summary) if summary else ""
        texts.append(f"**{shown}**" if summary and summary.value == best[cell.workload, name] else shown)
    if rows.baselines:
        texts.insert(1, _ratio_text(cell, rows.baseline_of(cell)))
    return texts


def _ratio_text(cell: CellRow, baseline: CellRow | None) -> str:
    if baseline is None:
        return "not compared"
    if cell is baseline:
        return "1 (baseline)"
    ratio = paired_ratio(cell.values("tokens_per_s"), baseline.values("tokens_per_s")) if baseline.comparable else None
    return "" if ratio is None else ratio_mark(ratio)


def ratio_mark(ratio: Summary) -> str:
    """Return the ratio, with `~` where the trials show no difference."""
    unsure = judge(ratio, neutral=1.0, higher_is_better=True) == "no difference shown"
    return f"{show_summary(ratio)}{' ~' if unsure else ''}"


def _excuse(cell: CellRow, notes: _Footnotes) -> list[str]:
    rehearsed = f"rehearsed failure ({cell.drill.kind}). " if cell.drill else ""
    reason = rehearsed + cell.because
    if cell.outcome in FAILED and not cell.because:
        reason += "no reason was recorded"
    return [f"{cell.outcome}{notes.mark(reason) if reason else ''}"]


def _variants_text(table: VariantTable | None) -> str:
    if table is None:
        return ""
    aligns = [":--"] * table.num_names + ["--:"] * (len(table.columns) - table.num_names)
    lines = [_line([column.header for column in table.columns]), _line(aligns)]
    lines += [_line([escape(entry.text) for entry in line.entries]) for line in table.lines]
    head = f"**What is left of the trained models.** {escape(table.summary)}".rstrip()
    return "\n".join([head, "", *lines, "", *(escape(note, keep="`") for note in table.notes)])


def _categories_text(table: VariantTable | None) -> str:
    """Say what each variant lost in each category; nothing where no record knows it."""
    if table is None or not table.categories:
        return ""
    names = [column.header for column in table.columns[: table.num_names - 2]]
    lines = [_line([*names, *(f"{escape(name)} ({number})" for name, number in table.categories)])]
    lines.append(_line([":--"] * len(names) + ["--:"] * len(table.categories)))
    for line in (line for line in table.lines if line.categories):
        lost = {(one.category, one.num_questions): one.lost.get(table.score, "") for one in line.categories}
        named = [escape(entry.text) for entry in line.entries[: len(names)]]
        lines.append(_line([*named, *(escape(lost.get(key, ""), keep="~") for key in table.categories)]))
    head = (
        f"**{table.score.upper()} lost by category of question, in points.** {CATEGORY_NOTE} "
        "In brackets behind a category: how many questions it has."
    )
    return "\n".join([head, "", *lines])


def _effects_table(found: Sequence[Effect]) -> str:
    metrics = [name for name in EFFECT_METRICS if any(effect.metric == name for effect in found)]
    if not metrics:
        return ""
    by_change: dict[tuple[str, str], dict[str, Effect]] = {}
    for effect in found:
        by_change.setdefault((effect.axis, effect.change), {})[effect.metric] = effect
    labels = {
        "tokens_per_s": "throughput (x)",
        "peak_memory_bytes": "peak memory (x)",
        "em_after": "EM",
        "f1_after": "F1",
    }
    lines = [_line(["axis", "change", *(labels[name] for name in metrics), "pairs"])]
    lines.append(_line([":--", ":--", *["--:"] * (len(metrics) + 1)]))
    for (axis, change), one in by_change.items():
        cells = [effect_text(one[name]) if name in one else "" for name in metrics]
        lines.append(_line([escape(axis), escape(change), *cells, str(max(e.num_pairs for e in one.values()))]))
    head = (
        "**One axis at a time, everything else equal.** Geometric mean [range] of the ratios over all pairs of cells "
        "(EM and F1: mean [range] of the differences in points); ~ means no difference shown."
    )
    return "\n".join([head, "", *lines])


def effect_text(effect: Effect) -> str:
    """Return an effect as a ratio, or as a difference with its sign."""
    summary = Summary(effect.value, effect.low, effect.high, effect.num_pairs)
    sign = "+" if not effect.is_ratio and effect.value > 0 else ""
    mark = " ~" if effect.verdict == "no difference shown" else ""
    return f"{sign}{show_summary(summary, places=None if effect.is_ratio else 2)}{mark}"


def _parts_text(rows: SweepRows) -> str:
    """Say what peaks and profiled steps consist of; nothing where no trial knows."""
    tables = [_parts_table(rows, head, names) for head, names in PARTS.items()]
    return "\n\n".join(table for table in tables if table)


def _parts_table(rows: SweepRows, head: str, names: Sequence[str]) -> str:
    cells = [cell for cell in rows.cells if cell.comparable and any(cell.values(name) for name in names)]
    if not cells:
        return ""
    headers = [*rows.varied, *(METRICS[name].header for name in names)]
    aligns = [":--"] * len(rows.varied) + ["--:"] * len(names)
    lines = [_line(headers), _line(aligns)]
    for cell in cells:
        summaries = [cell.summary(name) for name in names]
        shown = [METRICS[name].show(one) if one else "" for name, one in zip(names, summaries, strict=True)]
        lines.append(_line([*(escape(cell.axis_text(name)) for name in rows.varied), *shown]))
    return "\n".join([f"**{head}**", "", *lines])


def _predicted_text(rows: SweepRows) -> str:
    """Hold predictions against measurements; nothing for a sweep that was planned before there were any."""
    found = foretold(rows)
    if found is None:
        return ""
    parts = [f"**{HEADING}.** {escape(found.summary)}"]
    if found.lines:
        aligns = [":--"] * found.num_names + ["--:"] * (len(found.headers) - found.num_names)
        lines = (_line([escape(text) for text in line]) for line in found.lines)
        parts.append("\n".join([_line(found.headers), _line(aligns), *lines]))
    if found.fates:
        head = [_line(["predicted", *(f"cells: {fate}" for fate in FATES)]), _line([":--", *["--:"] * len(FATES)])]
        parts.append("\n".join([*head, *map(_line, found.fates)]))
    return "\n\n".join([*parts, *(escape(note) for note in found.notes)])


def _usage_text(rows: SweepRows) -> str:
    """Say what the time went into; nothing where neither allocations nor launches beyond the first are on record."""
    table, again = usage_table(rows), relaunches(rows)
    reasons = _reasons(again)
    if table is None:
        return f"{again.summary}\n\n{reasons}" if reasons else ""
    words = [f"{KINDS[kind]} (%)" for kind in table.kinds]
    headers = ["allocation", f"nodes x {table.unit}s", "starts", "trials", f"{table.unit}-hours", *words]
    lines = [_line(headers), _line([":--", ":--", *["--:"] * (len(headers) - 2)])]
    lines += [_usage_line(line, table.kinds) for line in (*table.lines, table.total)]
    head = f"**{heading(rows)}.** {table.summary} {again.summary} {' '.join(table.notes)}"
    return "\n".join([head, "", *lines, *(["", reasons] if reasons else [])])


def _usage_line(line: UsageLine, kinds: Sequence[str]) -> str:
    facts = [line.name, line.resources, str(line.num_starts), str(line.num_trials), line.hours]
    return _line([*facts, *(line.percent(kind) for kind in kinds)])


def _reasons(again: Relaunches) -> str:
    lines = [
        f"- launched again after {outcome or 'an unknown end'} ({count} x): "
        f"{escape(because) or ('no reason was recorded' if outcome else 'nobody wrote how it ended')}"
        for outcome, because, count in again.reasons[:MOST_REASONS]
    ]
    if len(again.reasons) > MOST_REASONS:
        lines.append(f"- and {len(again.reasons) - MOST_REASONS} rarer reasons")
    return "\n".join(lines)


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def escape(text: str, keep: str = "") -> str:
    """Escape what Markdown or HTML would read as markup, on one line."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\`*[]|~":
        if mark not in keep:
            text = text.replace(mark, f"\\{mark}")
    return " ".join(re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text).split())
