"""What the files of a sweep say right now: from any process, on any login node."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from egobench.errors import InvalidInput, Mistake
from egobench.records.allocation import AllocationPaths, list_allocations, living_claim
from egobench.records.lock import is_held
from egobench.records.outcome import FAILED, NOT_RUN, UNFINISHED, Outcome, OutcomeName
from egobench.records.pulse import PulseReading, read_pulse
from egobench.records.store import SweepPaths, TrialPaths, read_document
from egobench.records.sweep import PlannedCell, Sweep, count_outcomes


@dataclass(frozen=True)
class TrialState:
    """One planned trial as its files show it."""

    cell: PlannedCell
    trial: int
    paths: TrialPaths
    outcome: OutcomeName
    document: Outcome | None = None
    pulses: tuple[PulseReading, ...] = ()
    """Of the ranks, while it runs."""
    since: float | None = None
    """Unix time of the claim, while it runs."""

    @property
    def num_steps(self) -> int | None:
        """Return the planned number of steps, where the axes say it."""
        steps = self.cell.axes.get("num_steps")
        return int(steps) if steps is not None else None

    @property
    def step(self) -> int:
        """Return the step of the rank furthest behind; -1 before the first."""
        return min((pulse.step for pulse in self.pulses), default=-1)

    @property
    def because(self) -> str:
        return self.document.because if self.document else ""


@dataclass(frozen=True)
class SweepState:
    """A sweep as its files show it; the counts are over the current plan."""

    sweep: Sweep
    paths: SweepPaths
    trials: tuple[TrialState, ...]
    allocation: AllocationPaths | None
    """The one that runs now."""
    not_in_plan: tuple[str, ...]
    """Cells with a folder that the plan no longer has."""

    @property
    def ledger(self) -> dict[str, int]:
        """Return the count of trials per outcome."""
        return count_outcomes(trial.outcome for trial in self.trials)

    @property
    def cell_ledger(self) -> dict[str, int]:
        """Return the count of cells per outcome, those that the plan dropped included."""
        return count_outcomes(self.cell_outcome(cell) for cell in self.sweep.cells)

    def of_cell(self, cell_id: str) -> list[TrialState]:
        """Return the trials of one cell."""
        return [trial for trial in self.trials if trial.cell.cell_id == cell_id]

    def cell_outcome(self, cell: PlannedCell) -> OutcomeName:
        """Return what the outcomes of a cell's trials add up to: the first failure, else what is not finished yet."""
        if cell.outcome in NOT_RUN:
            return cell.outcome
        outcomes = [trial.outcome for trial in self.of_cell(cell.cell_id)]
        for kind in (FAILED, {"running"}, {"pending"}):
            if (found := next((outcome for outcome in outcomes if outcome in kind), None)) is not None:
                return found
        return "ok"

    @property
    def eta_s(self) -> float | None:
        """Return the time that the unfinished trials will still take one after another; None before any has ended."""
        return estimate_s(self.trials, time.time())


def estimate_s(trials: Sequence[TrialState], now: float) -> float | None:
    """Estimate from finished trials of the same cell, else of all cells."""
    durations: dict[str, list[float]] = {}
    for trial in trials:
        if trial.document is not None and trial.document.outcome == "ok":
            took_s = trial.document.ended_at - trial.document.started_at
            durations.setdefault(trial.cell.cell_id, []).append(took_s)
    if not durations:
        return None
    overall = statistics.fmean(took for cell in durations.values() for took in cell)
    total = 0.0
    for trial in trials:
        if trial.outcome in UNFINISHED:
            expected = statistics.fmean(durations.get(trial.cell.cell_id, [overall]))
            total += max(0.0, expected - (now - trial.since if trial.since is not None else 0.0))
    return total


def read_trial(cell: PlannedCell, trial: int, paths: TrialPaths) -> TrialState:
    """Look at one trial."""
    document = read_document(paths.outcome, Outcome)
    if document is not None:
        return TrialState(cell, trial, paths, document.outcome, document)
    claim = living_claim(paths)
    if claim is None:
        return TrialState(cell, trial, paths, "pending")
    pulses = (read_pulse(paths.rank_pulse(rank)) for rank in range(int(cell.axes.get("gpus", 1))))
    seen = tuple(pulse for pulse in pulses if pulse is not None)
    return TrialState(cell, trial, paths, "running", pulses=seen, since=claim.since)


def read_sweep(folder: Path) -> SweepState:
    """Look at a whole sweep.

    Raises:
        InvalidInput: there is no sweep in this folder.
    """
    paths = SweepPaths(folder)
    sweep = read_document(paths.sweep, Sweep)
    if sweep is None:
        mistake = Mistake(str(folder), "there is no sweep here", todo="start one with `egobench sweep matrix.yaml`")
        raise InvalidInput([mistake])
    trials = tuple(
        read_trial(cell, trial, paths.trial(cell.cell_id, trial))
        for cell in sweep.runnable()
        for trial in range(sweep.trials)
    )
    return SweepState(sweep, paths, trials, living_allocation(paths), tuple(_not_in_plan(sweep, paths)))


def living_allocation(paths: SweepPaths) -> AllocationPaths | None:
    """Return the newest allocation that still runs."""
    return next((found for found in reversed(list_allocations(paths)) if is_held(found.lock)), None)


def _not_in_plan(sweep: Sweep, paths: SweepPaths) -> Iterable[str]:
    planned = {cell.cell_id for cell in sweep.cells}
    for entry in sorted(paths.folder.iterdir()):
        if entry.is_dir() and entry.name not in planned and any(entry.glob("*/trial.json")):
            yield entry.name
