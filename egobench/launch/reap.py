"""Jobs that Slurm still holds GPUs for although their worker has long been done: a step whose daemon died."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from egobench.launch.cancel import scancel
from egobench.launch.queue.poll import state_of
from egobench.launch.watch.files import AllocationFiles
from egobench.records.allocation import Job
from egobench.records.queue import QueueView
from egobench.records.store import SweepPaths

GRACE_S: Final = 30.0
"""A job is over so long after its worker, at the latest."""
LOOK_EVERY_S: Final = 60.0
Ask = Callable[[SweepPaths, Sequence[Job], float], QueueView]


class Reaper:
    """Looks now and then after the jobs of allocations that ended by themselves."""

    def __init__(self, paths: SweepPaths, ask: Ask, every_s: float) -> None:
        self._paths, self._ask, self._every_s = paths, ask, every_s
        self._over: set[str] = set()
        self._next_s = time.monotonic() + LOOK_EVERY_S

    def look(self, allocations: Iterable[AllocationFiles]) -> list[str]:
        """Cancel the jobs that linger, and return their ids."""
        if time.monotonic() < self._next_s:
            return []
        self._next_s = time.monotonic() + LOOK_EVERY_S
        now = time.time()
        jobs = [
            files.job
            for files in allocations
            if files.job is not None and files.job.job_id not in self._over
            # Where it was Slurm that told the end, there is nothing left of the job.
            if files.ended is not None and not files.ended.state and now - files.ended.at > GRACE_S
        ]
        if not jobs:
            return []
        view = self._ask(self._paths, jobs, self._every_s)
        states = {job.job_id: state_of(view, job) for job in jobs}
        self._over |= {job_id for job_id, state in states.items() if state.activity == "over"}
        lingering = [job_id for job_id, state in states.items() if state.state == "RUNNING"]
        return [] if not lingering or scancel(lingering) else lingering
