"""An allocation: trials that one process runs one after another, and what it writes about itself."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from egobench.records.lock import is_held
from egobench.records.outcome import Outcome
from egobench.records.store import SweepPaths, TrialPaths, read_document
from egobench.spec.strict import Record


class TrialRef(Record):
    """One trial of an allocation."""

    cell_id: str
    trial: int
    attempt: int = Field(default=1, ge=1)
    """The launch this entry asks for: an outcome of this or a later attempt settles it."""


class Allocation(Record):
    """`allocations/<n>/allocation.json`: what to run, in this order."""

    schema_version: Literal[1] = 1
    sweep: str
    trials: tuple[TrialRef, ...]
    fail_fast: bool = False
    """Stop after the first trial that is not ok."""


class Claim(Record):
    """`running.json` of a trial: who runs it now. It counts only while that allocation holds its lock."""

    allocation: int | None
    """None: run by hand."""
    attempt: int
    host: str
    pid: int
    since: float
    """Unix time, s."""


class Ended(Record):
    """`allocations/<n>/ended.json`: the allocation came to its end by itself."""

    exit_code: int
    because: str = ""
    at: float
    """Unix time, s."""


class CancelRequest(Record):
    """`allocations/<n>/cancel.json`: somebody, anywhere, asks the allocation to end."""

    cell_id: str | None = None
    """Only this cell; None: everything."""
    by: str
    """host:pid of who asks."""
    at: float
    """Unix time, s."""


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


def is_settled(sweep: SweepPaths, ref: TrialRef) -> bool:
    """Return whether the trial has the outcome that this entry asks for."""
    outcome = read_document(sweep.trial(ref.cell_id, ref.trial).outcome, Outcome)
    return outcome is not None and outcome.attempt >= ref.attempt


def list_allocations(sweep: SweepPaths) -> list[AllocationPaths]:
    """Return the allocations of a sweep, oldest first."""
    if not sweep.allocations.is_dir():
        return []
    numbers = sorted(int(entry.name) for entry in sweep.allocations.iterdir() if entry.name.isdigit())
    return [AllocationPaths(sweep.allocations / str(number)) for number in numbers]


def living_claim(paths: TrialPaths) -> Claim | None:
    """Return who runs the trial right now; None where nobody does, whatever `running.json` says."""
    claim = read_document(paths.running, Claim)
    if claim is None:
        return None
    if claim.allocation is None:
        # Run by hand: only its own machine can tell whether it still lives.
        alive = claim.host == socket.gethostname() and _is_worker(claim.pid)
    else:
        alive = is_held(AllocationPaths(paths.folder.parent.parent / "allocations" / str(claim.allocation)).lock)
    return claim if alive else None


def _is_worker(pid: int) -> bool:
    try:
        return b"egobench.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
