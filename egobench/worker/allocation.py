"""Runs the trials of an allocation one after another, each in clean processes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from egobench.errors import (
    EXIT_AGAIN,
    EXIT_ENVIRONMENT,
    EXIT_INTERRUPTED,
    EXIT_INVALID_INPUT,
    EXIT_OK,
    EgobenchError,
)
from egobench.records.allocation import Allocation, AllocationPaths, Ended, Start, TrialRef, is_settled
from egobench.records.outcome import Outcome
from egobench.records.parents import give_up, look_at_parent
from egobench.records.store import AGAIN, create_document, disk_errors, read_document
from egobench.worker.say import say
from egobench.worker.slurm import SlurmStep, job_ends_at
from egobench.worker.start import begin, budget_ends_at, fruitless_starts, settle_leftovers
from egobench.worker.stop import Halt, Stop, Superseded
from egobench.worker.usage import Meter

if TYPE_CHECKING:
    from egobench.worker.team import Leader


@dataclass(frozen=True)
class Ending:
    """How an allocation ends."""

    code: int
    because: str = ""
    again: bool = False
    """Slurm is to start it again."""
    silent: bool = False
    """Somebody else says how it ended: Slurm, or a later start."""


def run_allocation(folder: Path, body: str, step: SlurmStep | None = None) -> int:
    """Run what `allocation.json` lists and is not settled yet; return the exit code.

    Raises:
        EnvironmentProblem: it cannot begin.
    """
    paths = AllocationPaths(folder)
    allocation = read_document(paths.allocation, Allocation)
    if allocation is None:
        return _end(paths, Ending(EXIT_INVALID_INPUT, f"{paths.allocation}: no whole allocation document"))
    start = begin(paths, allocation, step)
    run = _Run(paths, allocation, start, step)
    try:
        ending = run.go(body)
    except Superseded as error:
        say(error)
        return EXIT_ENVIRONMENT
    except EgobenchError as error:
        ending = Ending(error.exit_code, str(error))
    finally:
        run.close()
    return _end(paths, run.arrange(ending))


class _Run:
    """One start of an allocation, on the first node."""

    def __init__(self, paths: AllocationPaths, allocation: Allocation, start: Start, step: SlurmStep | None) -> None:
        self._paths, self._allocation, self._start, self._step = paths, allocation, start, step
        self._stop = Stop(paths, start, step is not None, allocation.signal_before_end_s)
        self._stop.budget_ends_at = budget_ends_at(paths, allocation, start.number, start.at)
        self._stop.listen()
        self._job_ends_at = job_ends_at(step, allocation, start.at) if step is not None else None
        self._meter = Meter(paths, allocation, start)
        self._leader: Leader | None = None

    def go(self, body: str) -> Ending:
        """Run all trials; return how that ended."""
        for number, outcome in settle_leftovers(self._paths, self._allocation, self._start):
            self._meter.take_lost(number, outcome)
        # Imports torch, while the fork server does the same.
        from egobench.worker.agent import quiet_elastic_logging
        from egobench.worker.team import LostNode
        from egobench.worker.trial import Interrupted
        from egobench.worker.warm import await_server

        quiet_elastic_logging()
        await_server()
        try:
            self._assemble()
            self._meter.ready()
            for ref in self._allocation.trials:
                if (ending := self._why_not(ref)) is not None:
                    return ending
                if (ending := self._run_one(ref, body)) is not None:
                    return ending
        except Interrupted as error:
            return Ending(EXIT_INTERRUPTED, str(error), silent=True)
        except LostNode as error:
            lost = Ending(error.exit_code, str(error), again=True)
            halt = self._stop.everything()
            # Where Slurm is ending the step already, it knows better.
            return lost if halt is None or halt.kind == "warning" else _ending_of(halt)
        halt = self._stop.everything()
        return _ending_of(halt) if halt is not None and halt.kind == "superseded" else Ending(EXIT_OK)

    def _assemble(self) -> None:
        if self._step is None or self._step.num_nodes == 1:
            return
        from egobench.worker.team import Leader

        self._leader = Leader(self._step)
        self._leader.await_all(lambda: self._stop.everything() is not None)

    def _why_not(self, ref: TrialRef) -> Ending | None:
        """Return why no trial is to be started any more."""
        if (halt := self._stop.everything()) is not None:
            return _ending_of(halt)
        if self._is_done(ref):
            return None
        longest_s = self._longest_s()
        now = time.time()
        budget = self._stop.budget_ends_at
        if budget is not None and budget - now < longest_s:
            return Ending(EXIT_OK, "the allocation's GPU-hours do not suffice for another trial")
        if self._job_ends_at is not None and self._job_ends_at - now < longest_s:
            return Ending(EXIT_OK, "the time left does not suffice for another trial", again=True)
        return None

    def _is_done(self, ref: TrialRef) -> bool:
        return is_settled(self._paths.sweep, ref, self._allocation.retry)

    def _longest_s(self) -> float:
        """Return how long the longest trial of this allocation took; 0 before the first."""
        found = (read_document(self._paths.trial(ref).outcome, Outcome) for ref in self._allocation.trials)
        return max((it.ended_at - it.started_at for it in found if it is not None and not it.interrupted), default=0.0)

    def _run_one(self, ref: TrialRef, body: str) -> Ending | None:
        from egobench.worker.trial import Owner, run_trial, tell

        while not self._is_done(ref):
            self._stop.cell_id = ref.cell_id
            if self._stop.cell(ref.cell_id) is not None:
                return None
            trials, retry = self._allocation.trials, self._allocation.retry
            ready, parent = look_at_parent(self._paths.sweep, ref, retry, trials)
            if ready == "wait":
                return None
            if ready == "failed" and parent is not None:
                tell(give_up(self._paths.trial(ref), ref, parent))
                return None
            owner = Owner(self._paths.number, self._start.number, self._step is not None, self._leader)
            self._meter.write()
            try:
                outcome = run_trial(self._paths.trial(ref).folder, self._stop.this_trial, owner, body)
            except EgobenchError:
                self._take_what_is_known(ref)
                raise
            if outcome is None:
                say(f"{ref.cell_id} trial {ref.trial}: runs in another allocation; left to that one")
                return None
            tell(outcome)
            self._meter.take(outcome, self._paths.trial(ref))
            if self._allocation.fail_fast and outcome.outcome != "ok":
                return Ending(EXIT_OK, f"fail-fast: {ref.cell_id} trial {ref.trial} ended as {outcome.outcome}")
            if not outcome.interrupted and outcome.outcome not in self._allocation.retry.outcomes:
                return None
            if (ending := self._why_not(ref)) is not None:
                return ending
        return None

    def _take_what_is_known(self, ref: TrialRef) -> None:
        # Where a node was lost, the trial has its outcome all the same.
        outcome = read_document(self._paths.trial(ref).outcome, Outcome)
        if outcome is not None:
            self._meter.take(outcome, self._paths.trial(ref))

    def arrange(self, ending: Ending) -> Ending:
        """Have the allocation started again, if that is wanted and makes sense."""
        if not ending.silent and self._stop.is_superseded():
            return replace(ending, silent=True)
        if not ending.again or self._step is None:
            return ending
        if all(self._is_done(ref) or self._stop.cell(ref.cell_id) is not None for ref in self._allocation.trials):
            return Ending(EXIT_OK, ending.because)
        fruitless = fruitless_starts(self._paths, self._allocation, self._start)
        if fruitless >= self._allocation.retry.max_attempts:
            why = f"{ending.because}; not started again: {fruitless} starts in a row brought no trial to its end"
            return Ending(ending.code, why)
        # The batch script asks Slurm: an image has no scontrol. Of several nodes' codes srun may return another one.
        mark = self._paths.folder / AGAIN
        with disk_errors(mark):
            mark.touch()
        return Ending(EXIT_AGAIN, f"{ending.because}; to be started again", silent=True)

    def close(self) -> None:
        """Send the other nodes home, and say what the time went into."""
        if self._leader is not None:
            self._leader.dismiss()
        if not self._stop.is_superseded():
            try:
                self._meter.write(whole=True)
            except EgobenchError as error:  # the full disk that ended the allocation
                say(error)


def _ending_of(halt: Halt) -> Ending:
    if halt.kind == "superseded":
        raise Superseded(halt.why)
    if halt.kind == "signal":
        return Ending(EXIT_INTERRUPTED, halt.why, silent=True)
    if halt.kind == "warning":
        return Ending(EXIT_OK, halt.why, again=True)
    return Ending(EXIT_INTERRUPTED if halt.kind == "cancel" else EXIT_OK, halt.why)


def _end(paths: AllocationPaths, ending: Ending) -> int:
    if ending.because:
        say(ending.because)
    if not ending.silent:
        try:
            create_document(paths.ended, Ended(exit_code=ending.code, because=ending.because, at=time.time()))
        except EgobenchError as error:  # the full disk that ended the allocation
            say(error)
    return ending.code
