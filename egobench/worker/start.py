"""The beginning of an allocation, which may be its second: say so, and settle what the one before left."""

from __future__ import annotations

import os
import socket
import time
from typing import Final

from egobench.errors import EnvironmentProblem
from egobench.records.allocation import (
    Allocation,
    AllocationPaths,
    Claim,
    Ended,
    Start,
    TrialRef,
    last_start,
)
from egobench.records.claim import VANISHED
from egobench.records.interruption import record_interruption
from egobench.records.outcome import Outcome, OutcomeName
from egobench.records.store import create_document, read_document
from egobench.records.usage import Usage
from egobench.worker.say import say
from egobench.worker.slurm import SlurmStep, job_ends_at, was_preempted

_PREEMPTED: Final = "Slurm ended the allocation and started it again"


def begin(paths: AllocationPaths, allocation: Allocation, step: SlurmStep | None) -> Start:
    """Write `starts/<k>.json`, which supersedes every earlier start.

    Raises:
        EnvironmentProblem: Slurm started a job whose allocation was given up; its trials may run elsewhere.
    """
    if step is not None and (ended := read_document(paths.ended, Ended)) is not None:
        raise EnvironmentProblem(f"{paths.ended}: this allocation is over ({ended.because}); nothing is run")
    now = time.time()
    ends = [job_ends_at(step, allocation, now) if step is not None else None, budget_ends_at(paths, allocation, now)]
    while True:
        before = last_start(paths)
        start = Start(
            number=0 if before is None else before + 1,
            job_id=step.job_id if step is not None else None,
            restarts=step.restarts if step is not None else 0,
            nodes=step.nodes if step is not None else (socket.gethostname(),),
            pid=os.getpid(),
            at=now,
            ends_at=min((end for end in ends if end is not None), default=None),
        )
        if create_document(paths.start(start.number), start):
            break
    paths.ended.unlink(missing_ok=True)
    return start


def budget_ends_at(paths: AllocationPaths, allocation: Allocation, now: float) -> float | None:
    """Return when the allocation's GPU-hours will be used up, Unix time; None where it has no budget."""
    if allocation.gpu_hours_at_most is None:
        return None
    usage = read_document(paths.usage, Usage)
    used_s = sum(span.total_s for span in usage.spans) if usage is not None else 0.0
    return now + allocation.gpu_hours_at_most * 3600 / allocation.num_gpus - used_s


def settle_leftovers(paths: AllocationPaths, allocation: Allocation, start: Start) -> list[tuple[int, Outcome]]:
    """Give every trial that an earlier start left unfinished its outcome; return (which start, outcome)."""
    settled: list[tuple[int, Outcome]] = []
    for ref in allocation.trials:
        trial = paths.trial(ref)
        held = read_document(trial.running, Claim)
        if held is None or held.allocation != paths.number or held.start >= start.number or trial.outcome.exists():
            continue
        marked = trial.interrupted.exists()
        preempted = start.job_id is not None and (marked or was_preempted(start.job_id))
        outcome, because = ("preempted", _PREEMPTED) if preempted else ("node_fail", VANISHED)
        _settle(paths, ref, held, outcome, because, settled)
    return settled


def _settle(
    paths: AllocationPaths, ref: TrialRef, held: Claim, outcome: str, because: str, settled: list[tuple[int, Outcome]]
) -> None:
    name: OutcomeName = "preempted" if outcome == "preempted" else "node_fail"
    trial = paths.trial(ref)
    if not record_interruption(trial, held, name, because):
        return
    say(f"{ref.cell_id} trial {ref.trial}: {name}: {because}")
    if (document := read_document(trial.outcome, Outcome)) is not None:
        settled.append((held.start, document))


def fruitless_starts(paths: AllocationPaths, allocation: Allocation, start: Start) -> int:
    """Return how many starts, this one and those right before it, gave no trial its final outcome."""
    finals = [
        outcome.ended_at
        for ref in allocation.trials
        if (outcome := read_document(paths.trial(ref).outcome, Outcome)) is not None
        and allocation.retry.is_final(outcome, ref)
    ]
    count = 0
    for number in range(start.number, -1, -1):
        began = read_document(paths.start(number), Start)
        if began is not None and any(at >= began.at for at in finals):
            break
        count += 1
    return count
