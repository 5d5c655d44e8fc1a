"""What one axis does, everything else equal: every pair of cells that differ in that axis alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from egobench.records.outcome import NOT_RUN
from egobench.report.metrics import METRICS
from egobench.report.rows import CellRow, SweepRows
from egobench.report.stats import Summary, Verdict, geometric_mean, judge, paired_difference, paired_ratio

RATIO_METRICS: Final = ("tokens_per_s", "peak_memory_bytes")
DIFFERENCE_METRICS: Final = ("em_after", "f1_after")
EFFECT_METRICS: Final = RATIO_METRICS + DIFFERENCE_METRICS


@dataclass(frozen=True)
class Effect:
    """Going from one value of an axis to another, over all pairs of otherwise equal cells."""

    axes: tuple[str, ...]
    """One axis, or several that a `zip:` moves together."""
    before: tuple[Any, ...]
    after: tuple[Any, ...]
    metric: str
    is_ratio: bool
    value: float
    """Geometric mean of the ratios, or mean of the differences."""
    low: float | None
    """Over the pairs; a single pair: over its trials."""
    high: float | None
    num_pairs: int
    verdict: Verdict

    @property
    def axis(self) -> str:
        """Return the name to show."""
        return " + ".join(self.axes)

    @property
    def change(self) -> str:
        """Return `sdpa -> eager`."""
        return f"{_join(self.before)} -> {_join(self.after)}"


def _join(values: Sequence[Any]) -> str:
    return " + ".join(map(str, values))


def axis_groups(rows: SweepRows) -> tuple[tuple[str, ...], ...]:
    """Return the varied axes, those together that a `zip:` moves together.

    The plan says which (`Sweep.zipped`). Axes whose values determine each other in every cell that
    runs cannot be told apart either, so they count together as well.
    """
    groups: list[list[str]] = []
    for name in rows.varied:
        home = next((group for group in groups if any(_move_together(rows, name, other) for other in group)), None)
        if home is None:
            groups.append([name])
        else:
            home.append(name)
    return tuple(map(tuple, groups))


def _move_together(rows: SweepRows, one: str, other: str) -> bool:
    if any(one in group and other in group for group in rows.sweep.zipped):
        return True
    cells = [cell for cell in rows.cells if cell.outcome not in NOT_RUN]
    pairs = {(repr(cell.axes.get(one)), repr(cell.axes.get(other))) for cell in cells}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def effects(rows: SweepRows) -> tuple[Effect, ...]:
    """Return the effects of every axis on throughput, peak memory, EM and F1."""
    found = []
    for axes in axis_groups(rows):
        for change, pairs in _pairs(rows, axes).items():
            for metric in EFFECT_METRICS:
                effect = _effect(axes, change, metric, pairs)
                if effect is not None:
                    found.append(effect)
    return tuple(found)


Change = tuple[tuple[Any, ...], tuple[Any, ...]]


def _pairs(rows: SweepRows, axes: tuple[str, ...]) -> dict[Change, list[tuple[CellRow, CellRow]]]:
    """Return (value, other value) -> pairs of comparable cells; a baseline's value comes first."""
    equal = defaultdict(list)
    for cell in rows.cells:
        if cell.comparable:
            rest = repr([(name, cell.axes.get(name)) for name in rows.varied if name not in axes])
            equal[rest].append(cell)
    order = _value_order(rows, axes)
    changes: dict[Change, list[tuple[CellRow, CellRow]]] = defaultdict(list)
    for cells in equal.values():
        ranked = sorted(cells, key=lambda cell: order[repr(_value(cell, axes))])
        for index, one in enumerate(ranked):
            for other in ranked[index + 1 :]:
                changes[_value(one, axes), _value(other, axes)].append((one, other))
    by_order = sorted(changes.items(), key=lambda item: [order[repr(value)] for value in item[0]])
    return {change: pairs for change, pairs in by_order if change[0] != change[1]}


def _value(cell: CellRow, axes: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(cell.axes.get(name) for name in axes)


def _value_order(rows: SweepRows, axes: tuple[str, ...]) -> dict[str, int]:
    # One order for all workloads: the same change of two workloads is one effect, not two in opposite directions.
    values = dict.fromkeys(repr(_value(cell, axes)) for cell in [*rows.baselines, *rows.cells])
    return {value: index for index, value in enumerate(values)}


def _effect(
    axes: tuple[str, ...], change: Change, metric: str, pairs: Sequence[tuple[CellRow, CellRow]]
) -> Effect | None:
    is_ratio = metric in RATIO_METRICS
    combine = paired_ratio if is_ratio else paired_difference
    each = [combine(after.values(metric), before.values(metric)) for before, after in pairs]
    known = [summary for summary in each if summary is not None]
    if not known:
        return None
    over_all = _over_pairs(known, is_ratio)
    neutral = 1.0 if is_ratio else 0.0
    verdict = judge(over_all, neutral=neutral, higher_is_better=METRICS[metric].higher_is_better)
    return Effect(axes, *change, metric, is_ratio, over_all.value, over_all.low, over_all.high, len(known), verdict)


def _over_pairs(known: Sequence[Summary], is_ratio: bool) -> Summary:
    if len(known) == 1:
        return known[0]
    values = [summary.value for summary in known]
    value = geometric_mean(values) if is_ratio else math.fsum(values) / len(values)
    return Summary(value, min(values), max(values), len(values))
