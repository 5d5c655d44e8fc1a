"""What the files of the allocations say, read once for everybody who wants to know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from egobench.launch.fleet import AllocationState
from egobench.launch.queue.poll import state_of
from egobench.records.allocation import Allocation, AllocationPaths, Ended, Job, Start, TrialRef, list_allocations
from egobench.records.lock import is_held
from egobench.records.queue import JobState, QueueView
from egobench.records.store import SweepPaths, read_document
from egobench.records.usage import Usage


@dataclass(frozen=True)
class AllocationFiles:
    """All documents of one allocation at one moment."""

    paths: AllocationPaths
    document: Allocation
    job: Job | None
    starts: tuple[Start, ...]
    """Oldest first."""
    usage: Usage | None
    ended: Ended | None

    @property
    def refs(self) -> tuple[TrialRef, ...]:
        return self.document.trials

    @property
    def last_start(self) -> int:
        """Return the number of the newest start; 0 before the first, as a claim says it."""
        return self.starts[-1].number if self.starts else 0

    def state(self, view: QueueView | None) -> AllocationState:
        """Return whether it waits, runs or is over: by its files, then by Slurm's last known word."""
        if self.job is None:
            return AllocationState(self.paths, "active" if is_held(self.paths.lock) else "over")
        if self.ended is not None:
            return AllocationState(self.paths, "over", view.jobs.get(self.job.job_id) if view is not None else None)
        known = state_of(view if view is not None else QueueView(asked_at=0.0), self.job)
        return AllocationState(self.paths, "active" if self._has_begun(known) else known.activity, known)

    def _has_begun(self, known: JobState) -> bool:
        # Slurm is asked every few seconds only; a new start says sooner that it runs. One that was put back into the
        # queue has fewer restarts to its name than Slurm counts.
        return known.activity == "waiting" and bool(self.starts) and self.starts[-1].restarts >= known.restarts


def read_allocation(paths: AllocationPaths, known: AllocationFiles | None = None) -> AllocationFiles | None:
    """Read one allocation; None where it is not written yet.

    Args:
        paths: Its folder.
        known: What was read before: documents that never change are not read again.
    """
    document = known.document if known is not None else read_document(paths.allocation, Allocation)
    if document is None:
        return None
    ended = read_document(paths.ended, Ended)  # first: what is over writes nothing more
    job = known.job if known is not None and known.job is not None else read_document(paths.job, Job)
    starts = known.starts if known is not None else ()
    return AllocationFiles(
        paths=paths,
        document=document,
        job=job,
        starts=(*starts, *_starts(paths, starts)),
        usage=read_document(paths.usage, Usage),
        ended=ended,
    )


def read_allocations(paths: SweepPaths) -> list[AllocationFiles]:
    """Read all allocations of a sweep, oldest first."""
    return [files for found in list_allocations(paths) if (files := read_allocation(found)) is not None]


def _starts(paths: AllocationPaths, known: Sequence[Start]) -> Iterable[Start]:
    if not paths.starts.is_dir():
        return
    last = known[-1].number if known else -1
    numbers = (int(entry.stem) for entry in paths.starts.glob("*.json") if entry.stem.isdigit())
    for number in sorted(number for number in numbers if number > last):
        if (start := read_document(paths.start(number), Start)) is not None:
            yield start
