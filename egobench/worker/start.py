"""The beginning of an allocation, which may be its second: say so, and settle what the one before left."""

from __future__ import annotations

import itertools
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
    last_start,
)
from egobench.records.checkpoint import complete_checkpoints
from egobench.records.claim import VANISHED, look_afresh
from egobench.records.interruption import record_interruption
from egobench.records.outcome import Outcome, OutcomeName
from egobench.records.store import create_document, read_document
from egobench.worker.say import say
from egobench.worker.slurm import SlurmStep, job_ends_at, was_preempted
from egobench.worker.usage import spent_s

_PREEMPTED: Final = "Slurm ended the allocation and started it again"


def begin(paths: AllocationPaths, allocation: Allocation, step: SlurmStep | None) -> Start:
    """Write `starts/<k>.json`, which supersedes every earlier start.

    Raises:
        EnvironmentProblem: Slurm started a job whose allocation was given up; its trials may run elsewhere.
    """
    if step is not None:
        _refuse_if_over(paths)
    now = time.time()
    job_end = job_ends_at(step, allocation, now) if step is not None else None
    while True:
        look_afresh(paths.starts)
        before = last_start(paths)
        number = 0 if before is None else before + 1
        ends = (job_end, budget_ends_at(paths, allocation, number, now))
        start = Start(
            number=number,
            job_id=step.name if step is not None else None,
            restarts=step.restarts if step is not None else 0,
            nodes=step.nodes if step is not None else (socket.gethostname(),),
            pid=os.getpid(),
            at=now,
            ends_at=min((end for end in ends if end is not None), default=None),
        )
        if create_document(paths.start(start.number), start):
            break
    if step is None:
        paths.ended.unlink(missing_ok=True)
    else:
        # Who settled the job between our look and our start did not see the start; who comes now sees it.
        _refuse_if_over(paths)
    return start


def _refuse_if_over(paths: AllocationPaths) -> None:
    look_afresh(paths.folder, touch=True)
    if paths.ended.exists():
        ended = read_document(paths.ended, Ended)
        why = f" ({ended.because})" if ended is not None and ended.because else ""
        raise EnvironmentProblem(f"{paths.ended}: this allocation is over{why}; nothing is run")


def budget_ends_at(paths: AllocationPaths, allocation: Allocation, number: int, now: float) -> float | None:
    """Return when the allocation's GPU-hours will be used up, Unix time; None where it has no budget.

    Args:
        paths: The allocation.
        allocation: The same.
        number: The start that asks; those before it count as used.
        now: Unix time at which it began, s.
    """
    if allocation.gpu_hours_at_most is None:
        return None
    return now + allocation.gpu_hours_at_most * 3600 / allocation.num_gpus - spent_s(paths, number)


def settle_leftovers(paths: AllocationPaths, allocation: Allocation, start: Start) -> list[tuple[int, Outcome]]:
    """Give every trial that an earlier start left unfinished its outcome; return (which start, outcome)."""
    settled: list[tuple[int, Outcome]] = []
    for ref in allocation.trials:
        trial = paths.trial(ref)
        held = read_document(trial.running, Claim)
        if held is None or held.allocation != paths.number or held.start >= start.number or trial.outcome.exists():
            continue
        preempted = start.job_id is not None and (trial.interrupted.exists() or was_preempted(start.job_id))
        outcome: OutcomeName = "preempted" if preempted else "node_fail"
        because = _PREEMPTED if preempted else VANISHED
        if not record_interruption(trial, held, outcome, because):
            continue
        say(f"{ref.cell_id} trial {ref.trial}: {outcome}: {because}")
        if (document := read_document(trial.outcome, Outcome)) is not None:
            settled.append((held.start, document))
    return settled


def fruitless_starts(paths: AllocationPaths, allocation: Allocation, start: Start) -> int:
    """Return how many starts, this one and those right before it, gave no trial its final outcome nor a checkpoint."""
    fruits = [
        outcome.ended_at
        for ref in allocation.trials
        if (outcome := read_document(paths.trial(ref).outcome, Outcome)) is not None
        and allocation.retry.is_final(outcome, ref)
    ]
    for ref in allocation.trials:
        fruits += [saved.at for _, saved in itertools.islice(complete_checkpoints(paths.trial(ref).checkpoints), 1)]
    count = 0
    for number in range(start.number, -1, -1):
        began = read_document(paths.start(number), Start)
        if began is not None and any(at >= began.at for at in fruits):
            break
        count += 1
    return count
