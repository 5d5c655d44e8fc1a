"""Where the trials and allocations of a sweep stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from egobench.launch.fleet import AllocationState
from egobench.launch.watch.expected import Expected
from egobench.launch.watch.files import AllocationFiles
from egobench.launch.watch.hours import Hours, hours_of
from egobench.records.allocation import Claim
from egobench.records.outcome import FAILED, NOT_RUN, UNFINISHED, Outcome, OutcomeName
from egobench.records.pulse import PulseReading, read_pulse
from egobench.records.queue import QueueView
from egobench.records.store import SweepPaths, TrialPaths
from egobench.records.sweep import PlannedCell, Sweep, count_outcomes


@dataclass(frozen=True)
class TrialState:
    """One planned trial as its files show it."""

    cell: PlannedCell
    trial: int
    paths: TrialPaths
    outcome: OutcomeName
    document: Outcome | None = None
    """The newest outcome record; of a `pending` trial: that of an attempt that is to be repeated."""
    pulses: tuple[PulseReading, ...] = ()
    """Of the ranks, while it runs."""
    since: float | None = None
    """Unix time of the claim, while it runs."""
    allocation: int | None = None
    """The living one that runs it, or in which it waits."""
    attempt: int = 0
    """Launches so far."""
    note: str = ""
    """What is known of it without an outcome record."""

    @property
    def num_steps(self) -> int | None:
        """Return the planned number of steps, where the axes say it."""
        steps = self.cell.axes.get("num_steps")
        return int(steps) if steps is not None else None

    @property
    def num_ranks(self) -> int:
        return self.cell.num_ranks

    @property
    def step(self) -> int:
        """Return the step of the rank furthest behind; -1 before the first."""
        return min((pulse.step for pulse in self.pulses), default=-1)

    @property
    def because(self) -> str:
        return self.note or (self.document.because if self.document else "")


@dataclass(frozen=True)
class SweepState:
    """A sweep as its files show it; the counts are over the current plan."""

    sweep: Sweep
    paths: SweepPaths
    trials: tuple[TrialState, ...]
    allocations: tuple[AllocationState, ...] = ()
    """Those that wait or run, oldest first."""
    not_in_plan: tuple[str, ...] = ()
    """Cells with a folder that the plan no longer has."""
    over: tuple[AllocationState, ...] = ()
    """The other allocations."""
    files: Mapping[int, AllocationFiles] = field(default_factory=dict)
    """What every allocation wrote, by its number."""
    view: QueueView | None = None
    """Slurm's last answer; None: no Slurm site, or it was never asked."""
    at: float = 0.0
    """Unix time of the look, s."""

    @cached_property
    def ledger(self) -> dict[str, int]:
        """Return the count of trials per outcome."""
        return count_outcomes(trial.outcome for trial in self.trials)

    @cached_property
    def cell_ledger(self) -> dict[str, int]:
        """Return the count of cells per outcome, those that the plan dropped included."""
        return count_outcomes(self.cell_outcome(cell) for cell in self.sweep.cells)

    def of_cell(self, cell_id: str) -> list[TrialState]:
        """Return the trials of one cell."""
        return self._by_cell.get(cell_id, [])

    @cached_property
    def _by_cell(self) -> dict[str, list[TrialState]]:
        found: dict[str, list[TrialState]] = {}
        for trial in self.trials:
            found.setdefault(trial.cell.cell_id, []).append(trial)
        return found

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
    def running(self) -> list[TrialState]:
        return [trial for trial in self.trials if trial.outcome == "running"]

    @property
    def active(self) -> list[AllocationState]:
        """Return the allocations that hold GPUs now."""
        return [state for state in self.allocations if state.activity == "active"]

    @property
    def num_lanes(self) -> int:
        """Return how many allocations run at once: those that do; while all wait, those that the site lets run."""
        if self.active or not self.allocations:
            return max(1, len(self.active))
        site = self.sweep.site
        gpus = max(self.files[state.paths.number].document.num_gpus for state in self.allocations)
        most = max(1, site.max_gpus // gpus) if site.max_gpus is not None else len(self.allocations)
        return min(len(self.allocations), most)

    @cached_property
    def eta_s(self) -> float | None:
        """Return the time that the unfinished trials will still take, waiting in the queue not counted.

        As many allocations are taken to run as run now, each through its own list. None before any trial has ended.
        """
        if self._expected.overall_s is None:
            return None
        left = [trial for trial in self.trials if trial.outcome in UNFINISHED]
        loads: dict[int | None, float] = {}
        for trial in left:
            loads[trial.allocation] = loads.get(trial.allocation, 0.0) + self._left_s(trial)
        longest_s = max((load for number, load in loads.items() if number is not None), default=0.0)
        return max(sum(loads.values()) / self.num_lanes, longest_s)

    @cached_property
    def hours(self) -> Hours:
        """Return the GPU-hours of all allocations together."""
        states = (*self.allocations, *self.over)
        found = (hours_of(self.files[state.paths.number], state, self.at) for state in states)
        return sum(found, Hours())

    @property
    def planned_gpu_hours(self) -> float:
        """Return what the planned trials are expected to take, one attempt each, their start-up included."""
        return sum(trial.num_ranks * self._expected_s(trial) for trial in self.trials) / 3600

    @cached_property
    def _expected(self) -> Expected:
        return Expected.of(self.sweep.cells, (trial.document for trial in self.trials))

    def _expected_s(self, trial: TrialState) -> float:
        known_s = self._expected.of_cell_s(trial.cell.cell_id)
        default_s = self._expected.overall_s or self.sweep.site.expected_trial_min * 60
        return default_s if known_s is None else known_s

    def _left_s(self, trial: TrialState) -> float:
        has_run_s = self.at - trial.since if trial.since is not None else 0.0
        return max(0.0, self._expected_s(trial) - has_run_s)

    @property
    def num_repeats(self) -> int:
        """Return the attempts beyond the first."""
        return sum(max(0, trial.attempt - 1) for trial in self.trials)


def running_state(cell: PlannedCell, trial: int, paths: TrialPaths, claim: Claim) -> TrialState:
    """Look at a trial that runs."""
    pulses = (read_pulse(paths.rank_pulse(rank)) for rank in range(cell.num_ranks))
    return TrialState(
        cell,
        trial,
        paths,
        "running",
        pulses=tuple(pulse for pulse in pulses if pulse is not None),
        since=claim.since,
        allocation=claim.allocation,
        attempt=claim.attempt,
    )
