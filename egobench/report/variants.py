"""What is left of a trained model in other forms: lineage, size, accuracy and speed of every variant, side by side.

A variant is held against the same trained cell's `as_trained` variant (in torch, where there are several): the same
weights, questions, prompts and machine. Ratios are paired by trial; the loss of accuracy is paired by question
(`report/losses.py`). Not inferior is said only where the whole interval lies below the bound: that no difference is
shown would not do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from egobench.records.inference import BatchSpeed
from egobench.records.variant import VariantMeasures
from egobench.report.losses import SCORES, CategoryLoss, accuracy_drop, category_losses, measures_of
from egobench.report.rows import CellRow, SweepRows
from egobench.report.stats import Summary, paired_ratio, summarise
from egobench.spec.targets import VariantTargets

Reader = Callable[[VariantMeasures], float | None]


@dataclass(frozen=True)
class VariantMetric:
    """One number of a variant."""

    name: str
    label: str
    unit: str
    read: Reader
    scale: float = 1.0
    shown_unit: str = ""
    has_ratio: bool = False
    """It is also shown over the reference's."""

    @property
    def header(self) -> str:
        """Return the label with the unit that people see."""
        return f"{self.label} ({self.shown_unit or self.unit})"


def _first(one: VariantMeasures) -> BatchSpeed:
    return min(one.inference.batches, key=lambda batch: batch.batch_size)


def _largest(one: VariantMeasures) -> BatchSpeed:
    return max(one.inference.batches, key=lambda batch: batch.batch_size)


def _peak(one: VariantMeasures) -> float | None:
    memory = [batch.memory for batch in one.inference.batches]
    peaks = [each.peak_allocated_bytes or each.peak_rss_growth_bytes for each in memory]
    return max((peak for peak in peaks if peak is not None), default=None)


_MIB: Final = 1 / 2**20
METRICS: Final = (
    VariantMetric("size_on_disk_bytes", "Size", "B", lambda v: v.inference.size_on_disk_bytes, _MIB, "MiB", True),
    VariantMetric("peak_memory_bytes", "Peak memory", "B", _peak, _MIB, "MiB", True),
    VariantMetric("em", "EM", "points", lambda v: v.answers.em if v.answers else None),
    VariantMetric("f1", "F1", "points", lambda v: v.answers.f1 if v.answers else None),
    VariantMetric("image_encoding_s", "Image", "s", lambda v: _first(v).image_encoding_s.p50, 1e3, "ms"),
    VariantMetric(
        "time_to_first_token_s", "First token", "s", lambda v: _first(v).time_to_first_token_s.p50, 1e3, "ms"
    ),
    VariantMetric("time_per_output_token_s", "Per token", "s", lambda v: _first(v).decode_step_s.p50, 1e3, "ms"),
    VariantMetric("time_per_output_token_p99_s", "p99", "s", lambda v: _first(v).decode_step_s.p99, 1e3, "ms"),
    VariantMetric(
        "decode_tokens_per_s", "Decode", "tokens/s", lambda v: _first(v).decode_tokens_per_s.p50, has_ratio=True
    ),
    VariantMetric(
        "prefill_tokens_per_s", "Prefill", "tokens/s", lambda v: _first(v).prefill_tokens_per_s.p50, has_ratio=True
    ),
    VariantMetric(
        "batched_requests_per_s", "Requests, largest batch", "1/s", lambda v: _largest(v).requests_per_s.p50,
        has_ratio=True,
    ),
    VariantMetric("energy_per_token_j", "Energy per token", "J", lambda v: _first(v).energy_per_token_j),
)  # fmt: skip
"""Speed is that of the smallest batch, unless it says otherwise."""


@dataclass(frozen=True)
class Check:
    """One target of one variant."""

    text: str
    reached: bool | None
    """None: nothing to decide it with."""


@dataclass(frozen=True)
class VariantRow:
    """One variant cell, beside what it is held against."""

    cell: CellRow
    root: str
    """The trained cell, by the axes that vary."""
    reference: CellRow | None
    """None: no `as_trained` variant of the same cell."""
    drop: dict[str, Summary]
    """em, f1 -> points lost to the reference; low and high are 95 % over questions."""
    by_category: tuple[CategoryLoss, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def measures(self) -> list[VariantMeasures]:
        """Return what the trials that ended ok measured."""
        return list(measures_of(self.cell).values())

    @property
    def lineage(self) -> str:
        """Return `trained > student > student-int8`."""
        known = self.measures
        return " > ".join(("trained", *(known[0].lineage if known else (str(self.cell.axes["variant"]),))))

    def summary(self, metric: VariantMetric) -> Summary | None:
        """Return a metric over the trials."""
        return summarise(list(_values(self.cell, metric).values()))

    def ratio(self, metric: VariantMetric) -> Summary | None:
        """Return a metric over the reference's, paired by trial."""
        if self.reference is None or self.reference is self.cell:
            return None
        return paired_ratio(_values(self.cell, metric), _values(self.reference, metric))

    @property
    def is_wrong(self) -> bool:
        """Tell whether its outputs are not those of the model it was made from: its speed then means nothing."""
        return any(one.inference.agrees is False for one in self.measures)

    @property
    def reached(self) -> bool | None:
        """Return whether it reaches every target; None where one is open or there are none."""
        found = [check.reached for check in self.checks]
        if not found or self.is_wrong:
            return False if self.is_wrong and found else None
        return False if False in found else None if None in found else True


def _values(cell: CellRow, metric: VariantMetric) -> dict[int, float]:
    found = {trial: metric.read(one) for trial, one in measures_of(cell).items()}
    return {trial: float(value) for trial, value in found.items() if value is not None}


def variant_rows(rows: SweepRows) -> list[VariantRow]:
    """Return every variant of a sweep that is to run, those of one trained cell side by side."""
    cells = [cell for cell in rows.cells if cell.is_variant and cell.outcome != "incompatible"]
    names = _telling([name for name in rows.varied if name != "variant"], cells)
    # One trained cell's variants stand together, in the order of the matrix.
    roots = list(dict.fromkeys(_root(cell, names) for cell in cells))
    cells.sort(key=lambda cell: roots.index(_root(cell, names)))
    return [_row(rows, cell, _reference_of(cells, cell), _root(cell, names)) for cell in cells]


def score_of(rows: SweepRows) -> str:
    """Return the score that the target for variants is of."""
    targets = rows.sweep.targets.variants
    return targets.accuracy_drop.metric if targets is not None and targets.accuracy_drop is not None else "f1"


def _telling(names: list[str], cells: list[CellRow]) -> list[str]:
    """Return as few of the axes as tell the trained cells apart."""
    kept = list(names)
    for name in reversed(names):
        fewer = [one for one in kept if one != name]
        if len({_root(cell, fewer) for cell in cells}) == len({_root(cell, kept) for cell in cells}):
            kept = fewer
    return kept


def _root(cell: CellRow, names: list[str]) -> str:
    return " / ".join(str(cell.axes[name]) for name in names)


def _trained_axes(cell: CellRow) -> dict[str, Any]:
    return {name: value for name, value in cell.axes.items() if name != "variant"}


def _reference_of(cells: list[CellRow], cell: CellRow) -> CellRow | None:
    """Return the unchanged model in torch of the same trained cell, or in whatever runtime there is."""
    found = []
    for one in cells:
        known = list(measures_of(one).values())
        if known and known[0].kind == "as_trained" and _trained_axes(one) == _trained_axes(cell):
            found.append((known[0].runtime != "torch", one))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _row(rows: SweepRows, cell: CellRow, reference: CellRow | None, root: str) -> VariantRow:
    bare = VariantRow(cell, root, reference, {})
    if reference is not None and reference is not cell:
        found = {name: accuracy_drop(cell, reference, name) for name in SCORES}
        drop = {name: one for name, one in found.items() if one is not None}
        bare = replace(bare, drop=drop, by_category=category_losses(cell, reference))
    targets = rows.sweep.targets.variants
    return replace(bare, checks=_checks(bare, targets) if targets is not None else ())


def _checks(row: VariantRow, targets: VariantTargets) -> tuple[Check, ...]:
    known = {metric.name: metric for metric in METRICS}
    found = []
    if targets.size is not None:
        value = row.ratio(known["size_on_disk_bytes"])
        found.append(_check(f"size <= {targets.size.at_most:g}x", value, lambda v: v <= targets.size.at_most))  # type: ignore[union-attr]
    if targets.decode_speed is not None:
        bound = targets.decode_speed.at_least
        value = row.ratio(known["decode_tokens_per_s"])
        found.append(_check(f"decode >= {bound:g}x", value, lambda v: v >= bound))
    if targets.accuracy_drop is not None:
        bound, name = targets.accuracy_drop.below_points, targets.accuracy_drop.metric
        drop = row.drop.get(name)
        text = f"{name.upper()} not inferior by {bound:g} points"
        found.append(Check(text, None if drop is None or drop.high is None else drop.high < bound))
    return tuple(found)


def _check(text: str, ratio: Summary | None, reaches: Callable[[float], bool]) -> Check:
    return Check(text, None if ratio is None else reaches(ratio.value))
