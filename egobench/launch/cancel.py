"""`egobench cancel`: ask each allocation through a file, take jobs out of the queue, use force where nobody listens."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from typing import Final

from egobench.launch.fleet import AllocationState
from egobench.launch.queue.poll import ask, list_jobs, run_command
from egobench.launch.settle import settle
from egobench.launch.watch.reader import SweepReader
from egobench.launch.watch.state import SweepState
from egobench.records.allocation import AllocationPaths, CancelRequest, Ended, Job
from egobench.records.lock import is_held, read_holder
from egobench.records.outcome import UNFINISHED
from egobench.records.queue import JobState
from egobench.records.store import SweepPaths, read_document, write_document

PATIENCE_S: Final = 15.0
KILL_PATIENCE_S: Final = 5.0
SLURM_PATIENCE_S: Final = 40.0
"""A node may see a new file late: a network file system keeps what it knows of a folder for up to 30 s."""
SCANCEL_PATIENCE_S: Final = 60.0
"""Slurm asks a job to end, and kills it after the site's KillWait."""
SQUEUE_EVERY_S: Final = 5.0
JOBS_PER_CALL: Final = 500
LOOK_EVERY_S: Final = 0.1
OVER_ALREADY: Final = ("Invalid job id", "already completing or completed")
"""What scancel says where there is nothing to cancel any more."""
GONE: Final = frozenset({"CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"})


def cancel_sweep(paths: SweepPaths, cell_id: str | None = None) -> str:
    """End what waits and runs, and return what happened; everything not begun stays pending."""
    reader = SweepReader(paths.folder, ask)
    state = reader.read()
    if not state.allocations:
        return "nothing runs"
    if cell_id is not None:
        return _cancel_cell(reader, state, cell_id)
    for found in state.allocations:
        _request(found.paths, None)
    local = [found for found in state.allocations if state.files[found.paths.number].job is None]
    said = [_end_local(found.paths) for found in local]
    jobs = {found.paths: job for found in state.allocations if (job := state.files[found.paths.number].job) is not None}
    return "; ".join(said + (_end_jobs(jobs) if jobs else []))


def _request(allocation: AllocationPaths, cell_id: str | None) -> None:
    before = read_document(allocation.cancel, CancelRequest)
    if cell_id is not None and before is not None and before.everything:
        return
    cells = () if cell_id is None or before is None else (*before.cell_ids, before.cell_id or "")
    cell_ids = tuple(sorted({cell for cell in (*cells, cell_id) if cell}))
    by = f"pid {os.getpid()} on {socket.gethostname()}"
    write_document(allocation.cancel, CancelRequest(cell_id=cell_id, cell_ids=cell_ids, by=by, at=time.time()))


# ---------------------------------------------------------------- on this machine


def _end_local(allocation: AllocationPaths) -> str:
    if _wait_until(lambda: not is_held(allocation.lock), PATIENCE_S):
        return f"allocation {allocation.number} ended"
    return _kill(allocation)


def _wait_until(is_so: Callable[[], bool], patience_s: float, every_s: float = LOOK_EVERY_S) -> bool:
    deadline = time.monotonic() + patience_s
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def _kill(allocation: AllocationPaths) -> str:
    holder = read_holder(allocation.lock)
    if holder is None or holder.host != socket.gethostname():
        where = f"pid {holder.pid} on {holder.host}" if holder else "an unknown process"
        return f"allocation {allocation.number} ({where}) does not answer; its request stays in {allocation.cancel}"
    os.kill(holder.pid, signal.SIGKILL)  # its ranks die with it
    _wait_until(lambda: not is_held(allocation.lock), KILL_PATIENCE_S)
    if read_document(allocation.ended, Ended) is None:
        ended = Ended(exit_code=-signal.SIGKILL, because="cancelled; it did not answer and was killed", at=time.time())
        write_document(allocation.ended, ended)
    return f"allocation {allocation.number} did not answer and was killed; its running trial will be run again"


# ---------------------------------------------------------------- under Slurm


def _end_jobs(jobs: dict[AllocationPaths, Job]) -> list[str]:
    """Take waiting jobs out of the queue, wait for running ones to end by themselves, and end the others."""
    if problem := _take_out(jobs.values()):
        return [f"scancel: {problem}; the requests stay with the {len(jobs)} allocations"]
    gone = _gone(jobs)
    for paths in gone:
        _settle(paths, jobs[paths])
    active = [paths for paths in jobs if paths not in gone]
    _wait_until(lambda: all(paths.ended.exists() for paths in active), SLURM_PATIENCE_S)
    deaf = {paths: jobs[paths] for paths in active if not paths.ended.exists()}
    said = [f"{len(gone)} jobs left the queue"] if gone else []
    said += [f"{len(active) - len(deaf)} allocations ended"] if len(active) > len(deaf) else []
    return said + (_force(deaf) if deaf else [])


def _force(jobs: dict[AllocationPaths, Job]) -> list[str]:
    if problem := scancel(job.job_id for job in jobs.values()):
        return [f"scancel: {problem}; the requests stay with {len(jobs)} allocations"]
    left = dict(jobs)

    def are_gone() -> bool:
        for paths in _gone(left):
            _settle(paths, left.pop(paths))
        return not left

    _wait_until(are_gone, SCANCEL_PATIENCE_S, SQUEUE_EVERY_S)
    said = [f"{len(jobs) - len(left)} jobs did not answer and were ended by Slurm"] if len(jobs) > len(left) else []
    names = ", ".join(job.job_id for job in left.values())
    return said + ([f"{len(left)} jobs ({names}) have been asked to end and still do so"] if left else [])


def _take_out(jobs: Iterable[Job]) -> str:
    """Cancel whole arrays as far as they still wait; return why it did not work, empty where it did."""
    # Never with single tasks: `scancel --state=PENDING 7_3` takes all waiting tasks of job 7 (seen with Slurm 22.05).
    return scancel({job.array_id for job in jobs}, "--state=PENDING")


def scancel(ids: Iterable[str], *options: str) -> str:
    """Cancel jobs; return why it did not work, empty where it did or they were over already."""
    ordered = sorted(ids)
    for first in range(0, len(ordered), JOBS_PER_CALL):
        problem = run_command(["scancel", *options, *ordered[first : first + JOBS_PER_CALL]]).problem
        if problem and not any(text in problem for text in OVER_ALREADY):
            return problem
    return ""


def _gone(jobs: dict[AllocationPaths, Job]) -> list[AllocationPaths]:
    """Return the allocations whose jobs neither wait nor run; none where Slurm does not answer."""
    rows, unanswered = list_jobs(jobs.values(), run_command)
    if unanswered:
        return []
    living = {row.job_id for row in rows if row.state not in GONE}
    return [paths for paths, job in jobs.items() if job.job_id not in living]


def _settle(paths: AllocationPaths, job: Job) -> None:
    state = JobState(job_id=job.job_id, job_name=job.job_name, state="CANCELLED", activity="over", source="squeue")
    settle(AllocationState(paths, "over", state))


# ---------------------------------------------------------------- one cell


def _cancel_cell(reader: SweepReader, state: SweepState, cell_id: str) -> str:
    """Have the cell's running trials ended and its waiting ones left out; the rest of each allocation goes on."""
    asked = [found for found in state.allocations if _has_unfinished(state, found.paths.number, cell_id)]
    if not asked:
        return f"no trial of {cell_id} waits or runs"
    for found in asked:
        _request(found.paths, cell_id)
    emptied = {
        found.paths: job
        for found in asked
        if found.activity == "waiting"
        and (job := state.files[found.paths.number].job) is not None
        and not _others(state, found.paths)
    }
    said = []
    if emptied and not scancel(job.job_id for job in emptied.values()):
        gone = _gone(emptied)
        for paths in gone:
            _settle(paths, emptied[paths])
        said = [f"{len(gone)} jobs with nothing else to do left the queue"] if gone else []
    patience_s = SLURM_PATIENCE_S if state.sweep.site.launcher == "slurm" else PATIENCE_S
    if _wait_until(lambda: not _runs(reader.read(), cell_id), patience_s):
        numbers = ", ".join(str(found.paths.number) for found in asked[:5]) + (", ..." if len(asked) > 5 else "")
        what = "allocation" if len(asked) == 1 else "allocations"
        return "; ".join([*said, f"no trial of {cell_id} runs now, and {what} {numbers} will start none"])
    return "; ".join([*said, f"asked {len(asked)} allocations to leave out {cell_id}"])


def _has_unfinished(state: SweepState, number: int, cell_id: str) -> bool:
    listed = any(ref.cell_id == cell_id for ref in state.files[number].refs)
    return listed and any(trial.outcome in UNFINISHED for trial in state.of_cell(cell_id))


def _others(state: SweepState, paths: AllocationPaths) -> bool:
    """Return whether an allocation has trials left that nobody cancelled."""
    request = read_document(paths.cancel, CancelRequest)
    cells = {ref.cell_id for ref in state.files[paths.number].refs}
    left = {cell_id for cell_id in cells if request is None or not request.leaves_out(cell_id)}
    return any(trial.outcome in UNFINISHED for cell_id in left for trial in state.of_cell(cell_id))


def _runs(state: SweepState, cell_id: str) -> bool:
    return any(trial.outcome == "running" for trial in state.of_cell(cell_id))
