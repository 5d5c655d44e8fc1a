"""What the allocations of a sweep and the earlier attempts of its trials left, in the form that is published."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from egobench.records.allocation import Allocation, AllocationPaths, Claim, Ended, Job, Start, list_allocations
from egobench.records.outcome import Outcome, OutcomeName
from egobench.records.queue import QueueView
from egobench.records.store import SweepPaths, TrialPaths, read_document
from egobench.records.usage import Span, Usage
from egobench.spec.strict import Record


class EarlierAttempt(Record):
    """A launch of a trial that was not its last."""

    attempt: int
    outcome: OutcomeName | None = None
    """None: nobody wrote how it ended."""
    because: str = ""
    started_at: float | None = None
    """Unix time, s."""
    ended_at: float | None = None
    allocation: int | None = None
    """Which one ran it; None: it was run by hand."""


class StartTime(Record):
    """One beginning of an allocation."""

    number: int
    at: float
    """Unix time, s."""
    ends_at: float | None = None
    """When its time limit or budget was to end it, s."""
    nodes: tuple[str, ...] = ()


class AllocationRow(Record):
    """One allocation: what it held, when, and what it said the time went into."""

    number: int
    num_nodes: int
    gpus_per_node: int
    starts: tuple[StartTime, ...] = ()
    """Oldest first."""
    spans: tuple[Span, ...] = ()
    """One per start that wrote something."""
    ended_at: float | None = None
    """Unix time, s; None: no end is on record."""
    ended_from_outside: bool = False
    """It was Slurm that told the end, and `ended_at` is when somebody asked."""
    elapsed_s: float | None = None
    """Of all its starts together, by Slurm's accounting."""

    @property
    def num_gpus(self) -> int:
        return self.num_nodes * self.gpus_per_node


def read_allocations(paths: SweepPaths) -> tuple[AllocationRow, ...]:
    """Read all allocations of a sweep, oldest first."""
    view = read_document(paths.queue, QueueView)
    found = (_read_allocation(one, view) for one in list_allocations(paths))
    return tuple(row for row in found if row is not None)


def _read_allocation(paths: AllocationPaths, view: QueueView | None) -> AllocationRow | None:
    allocation = read_document(paths.allocation, Allocation)
    if allocation is None:
        return None
    ended = read_document(paths.ended, Ended)  # first: what is over writes nothing more
    usage = read_document(paths.usage, Usage)
    return AllocationRow(
        number=paths.number,
        num_nodes=allocation.num_nodes,
        gpus_per_node=allocation.gpus_per_node,
        starts=tuple(_starts(paths)),
        spans=usage.spans if usage is not None else (),
        ended_at=ended.at if ended is not None else None,
        ended_from_outside=ended is not None and ended.state != "",
        elapsed_s=_elapsed_s(paths, ended, view),
    )


def _starts(paths: AllocationPaths) -> Iterable[StartTime]:
    for path in _numbered(paths.starts, ".json"):
        start = read_document(path, Start)
        if start is not None:
            yield StartTime(number=start.number, at=start.at, ends_at=start.ends_at, nodes=start.nodes)


def _elapsed_s(paths: AllocationPaths, ended: Ended | None, view: QueueView | None) -> float | None:
    """Return what accounting told of an allocation that is over; of one that runs it would count what is to come."""
    if ended is None or ended.elapsed_s is not None:
        return ended.elapsed_s if ended is not None else None
    job = read_document(paths.job, Job)
    state = view.jobs.get(job.job_id) if view is not None and job is not None else None
    if state is None or job is None or state.job_name not in ("", job.job_name):
        return None
    return state.elapsed_s


def read_earlier(paths: TrialPaths) -> tuple[EarlierAttempt, ...]:
    """Read how the launches of a trial before its last one ended, oldest first."""
    return tuple(_read_attempt(folder) for folder in _numbered(paths.attempts))


def _read_attempt(folder: Path) -> EarlierAttempt:
    number, place = int(folder.name), TrialPaths(folder)
    outcome, claim = read_document(place.outcome, Outcome), read_document(place.running, Claim)
    allocation = claim.allocation if claim is not None else None
    if outcome is None:
        return EarlierAttempt(attempt=number, allocation=allocation)
    return EarlierAttempt(
        attempt=number,
        allocation=allocation,
        outcome=outcome.outcome,
        because=outcome.because,
        started_at=outcome.started_at,
        ended_at=outcome.ended_at,
    )


def _numbered(folder: Path, suffix: str = "") -> list[Path]:
    if not folder.is_dir():
        return []
    found = (entry for entry in folder.iterdir() if entry.suffix == suffix and entry.stem.isdigit())
    return sorted(found, key=lambda entry: int(entry.stem))
