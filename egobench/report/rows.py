"""A sweep as plain rows: what every table, chart and verdict of the report starts from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from egobench.records.outcome import FAILED, NOT_RUN, Outcome, OutcomeName
from egobench.records.predicted import Predicted
from egobench.records.provenance import Provenance
from egobench.records.sweep import Sweep, count_outcomes
from egobench.records.trial import Drill
from egobench.report.allocations import AllocationRow, EarlierAttempt
from egobench.report.metrics import METRICS
from egobench.report.stats import Summary, summarise
from egobench.spec.axes import MAX
from egobench.spec.strict import Record


class Curve(Record):
    """A trial's steps, thinned for drawing; statistics never come from here."""

    step: tuple[int, ...] = ()
    step_time_s: tuple[float, ...] = ()
    loss: tuple[float, ...] = ()


@dataclass(frozen=True)
class TrialRow:
    """One planned trial and what it left."""

    trial: int
    outcome: OutcomeName
    document: Outcome | None = None
    provenance: Provenance | None = None
    curve: Curve = field(default_factory=Curve)
    earlier: tuple[EarlierAttempt, ...] = ()
    """Launches before this one, oldest first."""


@dataclass(frozen=True)
class CellRow:
    """One planned cell, its trials, and the outcome that they add up to."""

    cell_id: str
    axes: dict[str, Any]
    outcome: OutcomeName
    because: str
    trials: tuple[TrialRow, ...]
    drill: Drill | None = None
    predicted: Predicted | None = None
    """What the plan foretold; None: planned before there were predictions."""
    is_canary: bool = False
    """Predicted not to fit, and launched nevertheless."""
    stale: tuple[str, ...] = ()
    """What differs from the newest trial of the sweep: code, environment, data, model."""

    @property
    def workload(self) -> str:
        """Return the workload; numbers of different ones are not compared."""
        return str(self.axes.get("workload"))

    @property
    def is_variant(self) -> bool:
        """Return whether the cell makes something of another one's model, instead of training one."""
        return "variant" in self.axes

    @property
    def num_ok(self) -> int:
        """Return how many trials ended ok."""
        return sum(trial.outcome == "ok" for trial in self.trials)

    @property
    def comparable(self) -> bool:
        """Return whether the cell may stand in a comparison: all trials ok, no rehearsed failure, and no variant."""
        return self.outcome == "ok" and self.drill is None and not self.is_variant

    def values(self, metric: str) -> dict[int, float]:
        """Return trial -> value of the trials that ended ok and know the metric."""
        return dict(self._values(metric))

    def summary(self, metric: str) -> Summary | None:
        """Return the metric over the trials that ended ok."""
        return summarise(list(self._values(metric).values()))

    def _values(self, metric: str) -> dict[int, float]:
        if metric not in self._cache:
            self._cache[metric] = self._read(metric)
        return self._cache[metric]

    def _read(self, metric: str) -> dict[int, float]:
        found = {}
        for trial in self.trials:
            if trial.outcome == "ok" and trial.document is not None and trial.document.measures is not None:
                value = METRICS[metric].read(trial.document.measures)
                if value is not None and math.isfinite(value):
                    found[trial.trial] = float(value)
        return found

    @cached_property
    def _cache(self) -> dict[str, dict[int, float]]:
        return {}

    def axis_text(self, name: str) -> str:
        """Return the value of an axis as people read it: what was found, where the matrix left that to a search."""
        value = self.axes.get(name, "")
        found = self.summary(name) if value == MAX and name in METRICS else None
        if found is None:
            return str(value)
        ends = {found.low or found.value, found.high or found.value}
        return f"{value} ({' - '.join(f'{end:.0f}' for end in sorted(ends))})"

    def first_failure(self) -> Outcome | None:
        """Return the document of the first trial that failed."""
        return next((row.document for row in self.trials if row.outcome in FAILED and row.document), None)


@dataclass(frozen=True)
class SweepRows:
    """A whole sweep, in the order of its matrix."""

    sweep: Sweep
    cells: tuple[CellRow, ...]
    varied: tuple[str, ...] = field(default=())
    allocations: tuple[AllocationRow, ...] = ()

    def __post_init__(self) -> None:
        """Refuse rows that do not add up to what was planned."""
        assert self.ledger["planned"] == len(self.sweep.cells)
        assert self.trial_ledger["planned"] == len(self.sweep.runnable()) * self.sweep.trials

    @cached_property
    def ledger(self) -> dict[str, int]:
        """Return the count of cells per outcome."""
        return count_outcomes(cell.outcome for cell in self.cells)

    @cached_property
    def trial_ledger(self) -> dict[str, int]:
        """Return the count of trials per outcome; a cell that the plan dropped has none."""
        return count_outcomes(trial.outcome for cell in self.cells for trial in cell.trials)

    @cached_property
    def workloads(self) -> tuple[str, ...]:
        """Return the workloads of the cells, in the order of the matrix."""
        return tuple(dict.fromkeys(cell.workload for cell in self.cells))

    @cached_property
    def trained(self) -> tuple[CellRow, ...]:
        """Return the cells that train."""
        return tuple(cell for cell in self.cells if not cell.is_variant)

    @property
    def baselines(self) -> tuple[CellRow, ...]:
        """Return the cells that others are compared with: at most one per workload."""
        return tuple(self._baselines.values())

    def baseline_of(self, cell: CellRow) -> CellRow | None:
        """Return what a cell is compared with: its own workload's baseline, if the matrix names one."""
        return self._baselines.get(cell.workload)

    def columns(self, names: Sequence[str]) -> list[str]:
        """Return the metrics that a table needs: somebody knows them, and a share differs between cells."""
        known = [name for name in names if any(cell.values(name) for cell in self.cells)]
        shares = {value for cell in self.cells for value in cell.values("trainable_share").values()}
        return [name for name in known if name != "trainable_share" or len(shares) > 1]

    @property
    def not_compared(self) -> tuple[str, ...]:
        """Return the workloads without a baseline."""
        return tuple(name for name in self.workloads if name not in self._baselines)

    @cached_property
    def _baselines(self) -> dict[str, CellRow]:
        return {cell.workload: cell for cell in self.cells if cell.cell_id == self.sweep.baseline_of(cell.axes)}

    @cached_property
    def fixed(self) -> dict[str, Any]:
        """Return the axes that have one value in the whole sweep."""
        first = self.cells[0].axes if self.cells else {}
        return {name: value for name, value in first.items() if name not in self.varied}

    def documents(self) -> list[Outcome]:
        """Return every outcome document, in the order of the matrix."""
        return [row.document for cell in self.cells for row in cell.trials if row.document is not None]


def outcome_of(trials: Sequence[TrialRow]) -> tuple[OutcomeName, str]:
    """Return the outcome of a cell that runs, and why: ok only if every trial is ok, else its first failure."""
    for wanted in (FAILED, frozenset({"running"}), frozenset({"pending"}), NOT_RUN):
        for row in trials:
            if row.outcome in wanted:
                because = row.document.because if row.document else ""
                which = f"trial {row.trial + 1} of {len(trials)}: " if because and len(trials) > 1 else ""
                return row.outcome, which + because
    return "ok", ""


def varied_axes(cells: Sequence[CellRow], declared: Sequence[str]) -> tuple[str, ...]:
    """Return the axes with more than one value: the matrix's order first, then any that moves along."""
    names = [*declared, *(name for cell in cells for name in cell.axes)]
    return tuple(name for name in dict.fromkeys(names) if len({repr(cell.axes.get(name)) for cell in cells}) > 1)
