"""An allocation: trials that one process runs one after another, and what it writes about itself."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from egobench.records.lock import is_held
from egobench.records.outcome import Outcome, OutcomeName
from egobench.records.queue import QueueView
from egobench.records.store import SweepPaths, TrialPaths, read_document
from egobench.spec.strict import Record


class TrialRef(Record):
    """One trial of an allocation."""

    cell_id: str
    trial: int
    attempt: int = Field(default=1, ge=1)
    """The launch this entry asks for: an outcome of an earlier attempt does not settle it."""
    parent: str | None = None
    """cell_id whose trial of the same number must be over first."""
    needs: Literal["ok", "end"] = "ok"
    """What the parent's trial must have come to."""


INTERRUPTIONS: Final[frozenset[OutcomeName]] = frozenset({"node_fail", "preempted", "timeout"})
"""Outcomes that can be the allocation's doing."""


class Retry(Record):
    """Which outcomes are not final."""

    outcomes: tuple[OutcomeName, ...] = ()
    """Launched again whatever the cause, as `--retry` named them; an interrupted trial is launched again anyway."""
    max_attempts: int = Field(default=3, ge=1)
    """Launches of one trial at most, counted from the attempt that is asked for; an interrupted one does not count
    where a later one goes on from a checkpoint of it."""

    def is_final(self, outcome: Outcome, ref: TrialRef) -> bool:
        """Return whether no further launch is to follow."""
        if outcome.attempt < ref.attempt:
            return False
        may_repeat = outcome.interrupted or outcome.outcome in self.outcomes
        return not may_repeat or outcome.attempt - _num_gains(outcome) >= ref.attempt + self.max_attempts - 1


def _num_gains(outcome: Outcome) -> int:
    """Return how many interrupted attempts brought the trial nearer to its end: a later one went on from there."""
    if not outcome.interrupted or outcome.measures is None:
        return 0
    return len(set(outcome.measures.resumed_at))


class Allocation(Record):
    """`allocations/<n>/allocation.json`: what to run, in this order, and on what."""

    schema_version: Literal[1] = 1
    sweep: str
    trials: tuple[TrialRef, ...]
    fail_fast: bool = False
    """Stop after the first trial that is not ok."""
    retry: Retry = Retry()
    num_nodes: int = 1
    gpus_per_node: int = 1
    """Ranks of each node at most, whether they have a GPU or not."""
    time_limit_min: int | None = None
    """What Slurm grants; None: no limit (a local allocation)."""
    signal_before_end_s: int = 90
    """How long before its time limit Slurm warns it."""
    gpu_hours_at_most: float | None = None
    """Over all its starts; None: no budget."""
    after: tuple[int, ...] = ()
    """Allocations that must be over before this one starts."""

    @property
    def num_gpus(self) -> int:
        return self.num_nodes * self.gpus_per_node


class Job(Record):
    """`allocations/<n>/job.json`: the Slurm job that is to run the allocation. Written right after sbatch answered."""

    schema_version: Literal[1] = 1
    job_id: str
    """`123_4` for a task of an array, else `123`."""
    job_name: str
    """Unique to this submission, because Slurm gives job ids out again."""
    submitted_at: float
    """Unix time of the login node, s."""
    submitted_by: str
    """user@host."""
    script: str
    """The sbatch text as submitted."""
    log: str
    """What Slurm's own processes say goes here; the worker's talk is in `log.txt`."""
    parallel: int = 1
    """Tasks of its array that may run at once."""

    @property
    def array_id(self) -> str:
        """Return the id that sbatch printed."""
        return self.job_id.partition("_")[0]


class Start(Record):
    """`allocations/<n>/starts/<k>.json`: the k-th time the allocation began; a later one supersedes it."""

    schema_version: Literal[1] = 1
    number: int
    """0, 1, ...: grows with every requeue."""
    job_id: str | None = None
    """None: no Slurm job."""
    restarts: int = 0
    """SLURM_RESTART_COUNT."""
    nodes: tuple[str, ...]
    pid: int
    at: float
    """Unix time of the first node, s."""
    ends_at: float | None = None
    """When the time limit or the budget will end it, s; None: never."""


class Interruption(Record):
    """`interrupted.json` of a trial: its allocation was told to end; why, Slurm knows."""

    allocation: int
    start: int
    attempt: int
    signal: str
    at: float
    """Unix time, s."""


class Claim(Record):
    """`running.json` of a trial: who runs it now. It counts only while that start of the allocation lives."""

    allocation: int | None
    """None: run by hand."""
    start: int = 0
    """Which start of the allocation."""
    attempt: int
    host: str
    pid: int
    since: float
    """Unix time, s."""


class Ended(Record):
    """`allocations/<n>/ended.json`: the allocation is over for good. Not written before a requeue."""

    exit_code: int
    """Of the worker; negative: the signal that ended it."""
    because: str = ""
    state: str = ""
    """Slurm's word, where it was Slurm that told the end: NODE_FAIL, CANCELLED, ..."""
    elapsed_s: float | None = None
    """Of all its starts together, by Slurm's accounting; None: it told nothing."""
    at: float
    """Unix time, s."""


class CancelRequest(Record):
    """`allocations/<n>/cancel.json`: somebody, anywhere, asks the allocation to end."""

    cell_id: str | None = None
    """Only this cell; None: everything, unless `cell_ids` names some."""
    cell_ids: tuple[str, ...] = ()
    """Further cells to leave out, so that one can be cancelled after another."""
    by: str
    """host:pid of who asks."""
    at: float
    """Unix time, s."""

    @property
    def everything(self) -> bool:
        """Return whether the whole allocation is to end."""
        return self.cell_id is None and not self.cell_ids

    def leaves_out(self, cell_id: str) -> bool:
        """Return whether no trial of this cell is to run."""
        return self.everything or cell_id == self.cell_id or cell_id in self.cell_ids


@dataclass(frozen=True)
class AllocationPaths:
    """Every path of one allocation."""

    folder: Path

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def sweep(self) -> SweepPaths:
        return SweepPaths(self.folder.parent.parent)

    @property
    def allocation(self) -> Path:
        return self.folder / "allocation.json"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def job(self) -> Path:
        return self.folder / "job.json"

    @property
    def starts(self) -> Path:
        return self.folder / "starts"

    def start(self, number: int) -> Path:
        return self.starts / f"{number}.json"

    @property
    def usage(self) -> Path:
        return self.folder / "usage.json"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def ended(self) -> Path:
        return self.folder / "ended.json"

    @property
    def cancel(self) -> Path:
        return self.folder / "cancel.json"

    def trial(self, ref: TrialRef) -> TrialPaths:
        return self.sweep.trial(ref.cell_id, ref.trial)


def is_settled(sweep: SweepPaths, ref: TrialRef, retry: Retry = Retry()) -> bool:  # noqa: B008 - frozen
    """Return whether the trial has the outcome that this entry asks for."""
    outcome = read_document(sweep.trial(ref.cell_id, ref.trial).outcome, Outcome)
    return outcome is not None and retry.is_final(outcome, ref)


def list_allocations(sweep: SweepPaths) -> list[AllocationPaths]:
    """Return the allocations of a sweep, oldest first."""
    if not sweep.allocations.is_dir():
        return []
    numbers = sorted(int(entry.name) for entry in sweep.allocations.iterdir() if entry.name.isdigit())
    return [AllocationPaths(sweep.allocations / str(number)) for number in numbers]


def last_start(paths: AllocationPaths) -> int | None:
    """Return the number of the newest start; None where it never started."""
    if not paths.starts.is_dir():
        return None
    return max((int(entry.stem) for entry in paths.starts.glob("*.json") if entry.stem.isdigit()), default=None)


def living_claim(paths: TrialPaths, lives: Callable[[AllocationPaths], bool] | None = None) -> Claim | None:
    """Return who runs the trial right now; None where nobody does, whatever `running.json` says.

    Args:
        paths: The trial.
        lives: Whether an allocation lives; default: `is_living`.
    """
    claim = read_document(paths.running, Claim)
    if claim is None:
        return None
    if claim.allocation is None:
        # Run by hand: only its own machine can tell whether it still lives.
        alive = claim.host == socket.gethostname() and _is_worker(claim.pid)
    else:
        allocation = AllocationPaths(paths.folder.parent.parent / "allocations" / str(claim.allocation))
        alive = (lives or is_living)(allocation) and claim.start == (last_start(allocation) or 0)
    return claim if alive else None


def is_living(paths: AllocationPaths) -> bool:
    """Return whether the allocation waits or runs: by its lock here, by Slurm's last known word where it is a job."""
    job = read_document(paths.job, Job)
    if job is None:
        return is_held(paths.lock)
    if paths.ended.exists():
        return False
    view = read_document(paths.sweep.queue, QueueView)
    state = view.jobs.get(job.job_id) if view is not None else None
    return state is None or (state.activity != "over" and state.job_name in ("", job.job_name))


def _is_worker(pid: int) -> bool:
    try:
        return b"egobench.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
