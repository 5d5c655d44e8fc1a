"""Jobs that Slurm still holds GPUs for although their worker has long been done: a step whose daemon died."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from egobench.launch.cancel import scancel
from egobench.launch.queue.poll import list_jobs
from egobench.launch.watch.files import AllocationFiles

GRACE_S: Final = 60.0
"""A job is over so long after its worker, at the latest."""
LOOK_EVERY_S: Final = 300.0


class Reaper:
    """Looks now and then after the jobs of allocations that ended by themselves."""

    def __init__(self) -> None:
        self._looked_at: set[str] = set()
        self._next_s = time.monotonic() + LOOK_EVERY_S

    def look(self, allocations: Iterable[AllocationFiles]) -> list[str]:
        """Cancel the jobs that linger, and return their ids."""
        if time.monotonic() < self._next_s:
            return []
        self._next_s = time.monotonic() + LOOK_EVERY_S
        now = time.time()
        jobs = {
            files.job.job_name + files.job.job_id: files.job
            for files in allocations
            if files.job is not None and files.job.job_name + files.job.job_id not in self._looked_at
            # Where it was Slurm that told the end, there is nothing left of the job.
            if files.ended is not None and not files.ended.state and now - files.ended.at > GRACE_S
        }
        if not jobs:
            return []
        # Not the shared view: it knows what was seen before the worker's end, and an id may be somebody else's by now.
        rows, _ = list_jobs(jobs.values(), states="RUNNING")
        self._looked_at |= jobs.keys()
        lingering = [row.job_id for row in rows if row.job_name + row.job_id in jobs]
        return [] if not lingering or scancel(lingering) else lingering
