"""Concludes what Slurm ended: the outcome of the trial that an allocation left behind, and `ended.json`."""

from __future__ import annotations

import signal
import time
from typing import Final

from egobench.errors import EXIT_AGAIN, EXIT_ENVIRONMENT
from egobench.launch.fleet import AllocationState
from egobench.records.allocation import (
    Allocation,
    AllocationPaths,
    Claim,
    Ended,
    Interruption,
    Start,
    TrialRef,
    last_start,
)
from egobench.records.interruption import record_interruption
from egobench.records.outcome import OutcomeName
from egobench.records.queue import JobState
from egobench.records.store import TrialPaths, create_document, read_document
from egobench.units import format_bytes

NEAR: Final = 0.9
"""A share of the memory asked for, from which on it is suspected; Slurm samples, so it rarely sees the peak."""
SLURMS_DOING: Final[dict[str, tuple[OutcomeName, str]]] = {
    "PREEMPTED": ("preempted", "was preempted for a job that comes first"),
    "CANCELLED": ("cancelled", "was cancelled"),
    "REVOKED": ("cancelled", "was revoked: a sibling of it runs on another cluster"),
    "TIMEOUT": ("timeout", "reached its time limit"),
    "DEADLINE": ("timeout", "reached its deadline"),
    "NODE_FAIL": ("node_fail", "lost a node"),
    "BOOT_FAIL": ("node_fail", "got a node that did not boot"),
    "LAUNCH_FAILED": ("node_fail", "could not be launched on its nodes"),
    "RECONFIG_FAIL": ("node_fail", "got a node that could not be reconfigured"),
    "OUT_OF_MEMORY": ("host_oom", "used more host memory than it asked for"),
    "": ("node_fail", "is not known to Slurm any more, and left no word"),
}


def find_end(job: JobState, mark: Interruption | None = None) -> tuple[OutcomeName, str]:
    """Return what became of a trial that ran when its job ended, and why, in one line.

    Args:
        job: The job, over.
        mark: What the worker left where it was told to end.
    """
    if job.state in SLURMS_DOING:
        outcome, what = SLURMS_DOING[job.state]
    elif job.state == "FAILED" and job.exit_code == EXIT_ENVIRONMENT:  # the worker's own word, and its disk may be full
        outcome, what = "node_fail", f"met a problem of its machine; {_ending(job)}"
    elif job.state == "FAILED" and job.exit_code == EXIT_AGAIN:  # and Slurm would not start it again
        outcome, what = "preempted" if mark is not None else "node_fail", "handed its trials back"
    elif mark is not None:  # a job does not signal itself: a machine that shuts down, an administrator
        outcome, what = "preempted", f"was told to end by {mark.signal}; {_ending(job)}"
    else:
        outcome, what = "crash", f"ended under the trial: {_ending(job)}"
    where = f" on {job.nodes}" if job.nodes else ""
    state = job.state or "unknown"
    details = [f"Slurm: {state}" + (f", {job.reason}" if job.reason and job.reason != job.state else "")]
    if job.restarts:
        details.append(f"restarted {job.restarts} times" if job.restarts > 1 else "restarted once")
    if memory := _memory(job):
        details.append(memory)
    return outcome, f"job {job.job_id}{where} {what} ({'; '.join(details)})"


def settle(state: AllocationState) -> list[TrialRef]:
    """Write what an allocation that is over could not write itself; return the trials that got their outcome.

    An allocation that lives, that said itself how it ended, or that is no Slurm job, is left alone. So are the trials
    of one that another job has begun since: `ended.json` alone tells that job to stop. Two processes may do it at once:
    the first one's word stands.

    Raises:
        EnvironmentProblem: the disk is full or not writable; call it again.
    """
    paths, job = state.paths, state.job
    if job is None or state.activity != "over" or paths.ended.exists():
        return []
    document = read_document(paths.allocation, Allocation)
    newest = last_start(paths)
    start = read_document(paths.start(newest), Start) if newest is not None else None
    if start is not None and not job.nodes:
        job = job.model_copy(update={"nodes": ",".join(start.nodes)})
    # A run that never came as far as a start may have been the last.
    newest = None if start is None or job.restarts > start.restarts else start.number
    _, because = find_end(job)
    if start is not None and _is_of_another(start, job):
        document, because = None, f"{because}; but start {start.number} is of job {start.job_id}"
    settled = [ref for ref in document.trials if _settle_trial(paths, ref, job, newest)] if document else []
    ended = Ended(exit_code=_exit_code(job), because=because, state=job.state, elapsed_s=job.elapsed_s, at=time.time())
    create_document(paths.ended, ended)
    return settled


def _is_of_another(start: Start, job: JobState) -> bool:
    # Of a task, only `123_4` names it for good: a plain number may be its own, which squeue does not show.
    return start.job_id is not None and "_" in start.job_id and start.job_id != job.job_id


def _settle_trial(paths: AllocationPaths, ref: TrialRef, job: JobState, newest: int | None) -> bool:
    """Write the outcome of a trial that the allocation had claimed and did not finish."""
    trial = paths.trial(ref)
    claim = read_document(trial.running, Claim)
    if claim is None or claim.allocation != paths.number or trial.outcome.exists():
        return False
    mark = _mark_of(trial, claim)
    if claim.start == newest:
        outcome, because = find_end(job, mark)
    else:
        # A later start had no time to say so: this one ended with the job's earlier run, whatever ended the last.
        outcome = "preempted" if mark is not None else "node_fail"
        because = f"start {claim.start} of job {job.job_id} ended under it, and the job was started again"
    return record_interruption(trial, claim, outcome, because)


def _mark_of(trial: TrialPaths, claim: Claim) -> Interruption | None:
    mark = read_document(trial.interrupted, Interruption)
    is_of_claim = mark is not None and (mark.allocation, mark.start, mark.attempt) == (
        claim.allocation,
        claim.start,
        claim.attempt,
    )
    return mark if is_of_claim else None


def _ending(job: JobState) -> str:
    if job.signal:
        return f"killed by {_signal_name(job.signal)}"
    if job.state == "COMPLETED" or not job.exit_code:
        return "the worker left without a word"
    return f"exit code {job.exit_code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _memory(job: JobState) -> str:
    if not job.max_rss_bytes or not job.memory_bytes:
        return ""
    told = f"its largest task used {format_bytes(job.max_rss_bytes)} of {format_bytes(job.memory_bytes)} a node"
    if job.max_rss_bytes < NEAR * job.memory_bytes:
        return ""
    return told if job.state == "OUT_OF_MEMORY" else f"{told}: perhaps the job ran out of host memory"


def _exit_code(job: JobState) -> int:
    """Return the worker's exit code; a job that did not end by itself has none, and counts as failed."""
    if job.signal:
        return -job.signal
    return job.exit_code if job.state in ("COMPLETED", "FAILED") and job.exit_code is not None else 1
