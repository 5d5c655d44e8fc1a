"""The tables of variants, as text for page and Markdown and as lines for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from egobench.report.losses import LEAST_QUESTIONS, SCORES, CategoryLoss, verdict_of
from egobench.report.metrics import show_summary
from egobench.report.stats import Summary
from egobench.report.tables import exact
from egobench.report.variants import METRICS, VariantMetric, VariantRow
from egobench.units import significant

_KEPT: Final = ("size_on_disk_bytes", "peak_memory_bytes", "em", "f1")
"""Metrics that are not of speed."""
CATEGORY_NOTE: Final = (
    "Paired by question with the unchanged model, 95 % bootstrap over the category's questions where there are at "
    f"least {LEAST_QUESTIONS}; ~ means no difference shown. With many categories, one in twenty differs by chance."
)
_HEAD: Final = ("cell_id", "variant", "lineage", "kind", "runtime")
_NUMBERS: Final = ("metric", "value", "unit", "low", "high")


@dataclass(frozen=True)
class Column:
    """One column of the table."""

    header: str
    is_number: bool = True
    is_speed: bool = False


@dataclass(frozen=True)
class Entry:
    """One field of the table: `value [low, high] (ratio)`."""

    value: str
    range: str = ""
    ratio: str = ""
    raw: str = ""
    """The number, to sort by."""

    @property
    def text(self) -> str:
        """Return all of it on one line."""
        return " ".join(part for part in (self.value, self.range, self.ratio) if part)


@dataclass(frozen=True)
class CategoryLine:
    """One category of one variant, as text."""

    category: str
    num_questions: int
    kept: dict[str, str]
    lost: dict[str, str]
    """em, f1 -> points lost; `~` means that no difference is shown."""
    verdicts: dict[str, str]
    """em, f1 -> `worse`, `better`, `no difference shown`."""


@dataclass(frozen=True)
class VariantLine:
    """One variant, as text."""

    entries: tuple[Entry, ...]
    reached: bool | None
    categories: tuple[CategoryLine, ...]


@dataclass(frozen=True)
class VariantTable:
    """The table of all variants."""

    summary: str
    columns: tuple[Column, ...]
    lines: tuple[VariantLine, ...]
    notes: tuple[str, ...]
    num_names: int
    """How many of the first columns say which variant it is."""
    score: str
    """`em` or `f1`: what the target is of."""

    def shown(self, is_speed: bool) -> list[int]:
        """Return the places of the columns of one of the two tables on the page; names are in both."""
        names = list(range(self.num_names))
        return names + [
            index for index, column in enumerate(self.columns) if index not in names and column.is_speed == is_speed
        ]

    @property
    def categories(self) -> tuple[tuple[str, int], ...]:
        """Return every category that somebody was asked about, and how many questions it has."""
        found = {(one.category, one.num_questions) for line in self.lines for one in line.categories}
        return tuple(sorted(found))


def variant_table(found: Sequence[VariantRow], score: str = "f1") -> VariantTable | None:
    """Return the variants side by side; None where there are none."""
    if not found:
        return None
    shown = [metric for metric in METRICS if any(row.summary(metric) for row in found)]
    drops = [name for name in SCORES if any(name in row.drop for row in found)]
    has_roots, has_targets = len({row.root for row in found}) > 1, any(row.checks for row in found)
    columns = [Column(name, False) for name in ("trained as", "variant", "kind", "runtime")[not has_roots :]]
    num_names = len(columns)
    has_failed = not all(row.measures for row in found)
    columns += [Column("outcome", False)] * has_failed
    columns += [Column(metric.header, is_speed=metric.name not in _KEPT) for metric in shown]
    columns += [Column(f"{name.upper()} lost (points)") for name in drops]
    columns += [Column("targets", False)] * has_targets
    lines = tuple(
        VariantLine(
            (
                *_names(row, has_roots),
                *([_outcome(row)] if has_failed else []),
                *_numbers_of(row, shown, drops, has_targets),
            ),
            None if row.cell is row.reference else row.reached,
            tuple(_category(one) for one in row.by_category),
        )
        for row in found
    )
    return VariantTable(headline(found), tuple(columns), lines, _notes(found), num_names, score)


def _names(row: VariantRow, has_roots: bool) -> Iterator[Entry]:
    known = row.measures
    kind, runtime = (known[0].kind, known[0].runtime) if known else ("", "")
    names = [*([row.root] if has_roots else []), row.lineage.removeprefix("trained > "), kind, runtime]
    yield from (Entry(name, raw=name) for name in names)


def _outcome(row: VariantRow) -> Entry:
    because = f": {row.cell.because}" if row.cell.because and not row.measures else ""
    return Entry(f"{row.cell.outcome}{because}", raw=row.cell.outcome)


def _numbers_of(row: VariantRow, shown: list[VariantMetric], drops: list[str], has_targets: bool) -> Iterator[Entry]:
    if not row.measures:
        yield from [Entry("")] * (len(shown) + len(drops) + has_targets)
        return
    for metric in shown:
        one, ratio = row.summary(metric), row.ratio(metric) if metric.has_ratio else None
        over = f"({significant(ratio.value)}x)" if ratio is not None else ""
        yield Entry("") if one is None else _entry(show_summary(one, metric.scale), one, over)
    for name in drops:
        lost = row.drop.get(name)
        yield Entry("") if lost is None else _entry(show_summary(lost, places=2), lost)
    if has_targets:
        yield Entry(text := _verdict(row), raw=text)


def _entry(text: str, one: Summary, ratio: str = "") -> Entry:
    value, _, around = text.partition(" ")
    return Entry(value, around, ratio, exact(one.value))


def _category(one: CategoryLoss) -> CategoryLine:
    verdicts = {name: verdict_of(lost) for name, lost in one.lost.items()}
    return CategoryLine(
        one.category,
        one.num_questions,
        {name: show_summary(kept, places=1) for name, kept in one.kept.items()},
        {
            name: show_summary(lost, places=1) + (" ~" if verdicts[name] == "no difference shown" else "")
            for name, lost in one.lost.items()
        },
        {name: str(verdict) for name, verdict in verdicts.items()},
    )


def _verdict(row: VariantRow) -> str:
    if row.cell is row.reference:
        return "reference"
    if row.is_wrong:
        return "no: its outputs are not its model's"
    missed = [check.text for check in row.checks if check.reached is False]
    return f"no: misses {', '.join(missed)}" if missed else "yes" if row.reached else "open"


def _notes(found: Sequence[VariantRow]) -> tuple[str, ...]:
    notes = [
        "Speed is that of the smallest batch unless it says otherwise: medians of timed runs after a warm-up, greedy, "
        "fixed lengths, one picture a request, measured in a process of its own. In brackets behind the range: over "
        "the unchanged model (`as_trained`), paired by trial. Points lost are paired by question, 95 % bootstrap."
    ]
    elsewhere = ("prefill_tokens_per_s", "batched_requests_per_s")
    slower = [row for row in found if any(_is_slower(row, name) for name in elsewhere)]
    if slower:
        names = ", ".join(str(row.cell.axes["variant"]) for row in slower)
        notes.append(f"Slower than the unchanged model in prefill or at the largest batch: {names}.")
    if wrong := [str(row.cell.axes["variant"]) for row in found if row.is_wrong]:
        notes.append(f"Outputs differ from the model it was made from, so speed means nothing: {', '.join(wrong)}.")
    return tuple(notes)


def _is_slower(row: VariantRow, name: str) -> bool:
    ratio = row.ratio(next(metric for metric in METRICS if metric.name == name))
    return ratio is not None and ratio.value < 1


def headline(found: Sequence[VariantRow]) -> str:
    """Say in one sentence how many variants reach their targets."""
    if not any(row.checks for row in found):
        return ""
    held = [row for row in found if row.reference is not row.cell]
    met = [row for row in held if row.reached]
    texts = "; ".join(check.text for check in next(row.checks for row in found if row.checks))
    names = ", ".join(str(row.cell.axes["variant"]) for row in met)
    return f"{len(met)} of {len(held)} variants reach all targets ({texts}){': ' + names if met else ''}."


def variants_csv(found: Sequence[VariantRow]) -> str:
    """Return `variants.csv`, one line per variant and number; empty where there are no variants."""
    lines: list[Sequence[Any]] = []
    for row in found:
        head = _head(row)
        for metric in METRICS:
            if (one := row.summary(metric)) is not None:
                lines.append([*head, *_numbers(metric.name, one, metric.unit)])
        lines += [[*head, *_numbers(f"{name}_drop", drop, "points")] for name, drop in row.drop.items()]
    return _csv((*_HEAD, *_NUMBERS), lines) if found else ""


def categories_csv(found: Sequence[VariantRow]) -> str:
    """Return `variant_categories.csv`, one line per variant, category and number; empty where no category is known."""
    lines: list[Sequence[Any]] = []
    for row in found:
        for one in row.by_category:
            head = [*_head(row), one.category, one.num_questions]
            lines += [[*head, *_numbers(name, kept, "points")] for name, kept in one.kept.items()]
            lines += [[*head, *_numbers(f"{name}_drop", lost, "points")] for name, lost in one.lost.items()]
    return _csv((*_HEAD, "category", "num_questions", *_NUMBERS), lines) if lines else ""


def _head(row: VariantRow) -> list[Any]:
    known = row.measures
    return [
        row.cell.cell_id, row.cell.axes["variant"], row.lineage,
        *((known[0].kind, known[0].runtime) if known else ("", "")),
    ]  # fmt: skip


def _numbers(name: str, one: Summary, unit: str) -> list[str]:
    return [name, exact(one.value), unit, exact(one.low), exact(one.high)]


def _csv(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([header, *lines])
    return stream.getvalue()
