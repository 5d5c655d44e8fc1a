"""Looks at a sweep's files: once for `status`, again and again for `--watch`, then only at what can have changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from egobench.errors import InvalidInput, Mistake
from egobench.launch.fleet import AllocationState
from egobench.launch.settle import find_end
from egobench.launch.watch.files import AllocationFiles, read_allocation
from egobench.launch.watch.state import SweepState, TrialState, running_state
from egobench.records.allocation import (
    INTERRUPTIONS,
    Claim,
    Interruption,
    Job,
    Retry,
    TrialRef,
    list_allocations,
    living_claim,
)
from egobench.records.outcome import UNFINISHED, Outcome
from egobench.records.queue import QueueView
from egobench.records.store import SweepPaths, TrialPaths, read_document
from egobench.records.sweep import PlannedCell, Sweep

Ask = Callable[[SweepPaths, Sequence[Job], float], QueueView]
"""Asks Slurm about jobs, at most every so many seconds."""
FULL_LOOK_EVERY_S: Final = 30.0
NEAR: Final = 4
"""Trials of a running allocation looked at every time: it runs them in order."""
Key = tuple[str, int]


class SweepReader:
    """One sweep, looked at as often as one likes."""

    def __init__(self, folder: Path, ask: Ask | None = None) -> None:
        """Prepare to look.

        Args:
            folder: The sweep.
            ask: Asks Slurm; default: what it said last is taken.
        """
        self.paths = SweepPaths(folder)
        self._ask = ask
        self._stamp: tuple[int, int, int] | None = None
        self._sweep: Sweep | None = None
        self._not_in_plan: tuple[str, ...] = ()
        self._files: dict[int, AllocationFiles] = {}
        self._states: dict[int, AllocationState] = {}
        self._living: frozenset[int] = frozenset()
        self._entries: dict[Key, tuple[int, TrialRef]] = {}
        """Trial -> the newest allocation that lists it, and how."""
        self._trials: dict[Key, TrialState] = {}
        self._full_look_s = float("-inf")

    def read(self, again: Iterable[Key] = ()) -> SweepState:
        """Look; the first time, and every now and then, at all that can have changed.

        Args:
            again: Trials, as (cell_id, trial), to look at in any case.

        Raises:
            InvalidInput: there is no sweep in this folder.
        """
        sweep = self._read_plan()
        self._read_allocations()
        view = self._read_queue(sweep)
        self._states = states = {number: files.state(view) for number, files in self._files.items()}
        before, self._living = self._living, frozenset(n for n, state in states.items() if state.activity != "over")
        active = [self._files[number] for number in sorted(self._living) if states[number].activity != "waiting"]
        cells = {cell.cell_id: cell for cell in sweep.runnable()}
        keys = self._keys_to_look_at(cells, sweep.trials, active, before ^ self._living)
        for cell_id, trial in dict.fromkeys([*keys, *(key for key in again if key in self._trials)]):
            self._trials[cell_id, trial] = self._read_trial(cells[cell_id], trial)
        return SweepState(
            sweep=sweep,
            paths=self.paths,
            trials=tuple(self._trials[cell_id, trial] for cell_id in cells for trial in range(sweep.trials)),
            allocations=tuple(states[number] for number in sorted(self._living)),
            not_in_plan=self._not_in_plan,
            files=dict(self._files),
            over=tuple(states[number] for number in sorted(states.keys() - self._living)),
            view=view,
            at=time.time(),
        )

    def _read_plan(self) -> Sweep:
        try:
            found = os.stat(self.paths.sweep)
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            stamp = None
        if self._sweep is None or stamp != self._stamp:
            sweep = read_document(self.paths.sweep, Sweep)
            if sweep is None:
                todo = "start one with `egobench sweep matrix.yaml`"
                raise InvalidInput([Mistake(str(self.paths.folder), "there is no sweep here", todo=todo)])
            self._sweep, self._stamp, self._trials = sweep, stamp, {}
            self._not_in_plan = tuple(_not_in_plan(sweep, self.paths))
        return self._sweep

    def _read_allocations(self) -> None:
        for paths in list_allocations(self.paths):
            known = self._files.get(paths.number)
            if known is not None and known.ended is not None:
                continue
            files = read_allocation(paths, known)
            if files is not None:
                self._files[paths.number] = files
                if known is None:
                    self._entries |= {(ref.cell_id, ref.trial): (paths.number, ref) for ref in files.refs}

    def _read_queue(self, sweep: Sweep) -> QueueView | None:
        jobs = [files.job for files in self._files.values() if files.job is not None and files.ended is None]
        if self._ask is not None and jobs and sweep.site.launcher == "slurm":
            return self._ask(self.paths, jobs, sweep.site.poll_every_s)
        return read_document(self.paths.queue, QueueView) if sweep.site.launcher == "slurm" else None

    def _keys_to_look_at(
        self, cells: dict[str, PlannedCell], trials: int, active: Sequence[AllocationFiles], changed: frozenset[int]
    ) -> list[Key]:
        now_s = time.monotonic()
        if not self._trials or now_s - self._full_look_s > FULL_LOOK_EVERY_S:
            self._full_look_s = now_s
            everything = ((cell_id, trial) for cell_id in cells for trial in range(trials))
            return [key for key in everything if self._can_change(key)]
        keys = [key for key, state in self._trials.items() if state.outcome == "running"]
        for number in changed:
            keys += [(ref.cell_id, ref.trial) for ref in self._files[number].refs]
        for files in active:
            keys += self._near(files)
        return [key for key in keys if key in self._trials]

    def _near(self, files: AllocationFiles) -> list[Key]:
        """Return the trials whose turn comes next: the first ones left, and those behind the last one begun."""
        listed = [(ref.cell_id, ref.trial) for ref in files.refs]
        left = [index for index, key in enumerate(listed) if self._can_change(key)]
        begun = max((index for index, key in enumerate(listed) if self._has_begun(key)), default=-1)
        near = [*left[:NEAR], *[index for index in left if index > begun][:NEAR]]
        return [listed[index] for index in near]

    def _has_begun(self, key: Key) -> bool:
        state = self._trials.get(key)
        return state is not None and state.outcome != "pending"

    def _can_change(self, key: Key) -> bool:
        state = self._trials.get(key)
        if state is None or state.outcome in UNFINISHED or state.document is None:
            return True
        return not self._is_final(key, state.document)

    def _is_final(self, key: Key, outcome: Outcome) -> bool:
        number, ref = self._entry(key)
        if number not in self._living and outcome.attempt < ref.attempt:
            return True  # asked for once more, but that launch never came
        return self._retry(number).is_final(outcome, ref)

    def _is_last(self, key: Key, attempt: int) -> bool:
        number, ref = self._entry(key)
        return attempt >= ref.attempt + self._retry(number).max_attempts - 1

    def _entry(self, key: Key) -> tuple[int, TrialRef]:
        return self._entries.get(key) or (0, TrialRef(cell_id=key[0], trial=key[1]))

    def _retry(self, number: int) -> Retry:
        return self._files[number].document.retry if number in self._files else Retry()

    def _read_trial(self, cell: PlannedCell, trial: int) -> TrialState:
        paths, key = self.paths.trial(cell.cell_id, trial), (cell.cell_id, trial)
        document = read_document(paths.outcome, Outcome)
        if document is not None:
            return self._ended(cell, paths, document, key)
        claim = read_document(paths.running, Claim)
        if claim is None:
            return TrialState(cell, trial, paths, "pending", allocation=self._waits_in(key))
        if self._runs(paths, claim):
            return running_state(cell, trial, paths, claim)
        return self._unsettled(cell, paths, claim, key)

    def _runs(self, paths: TrialPaths, claim: Claim) -> bool:
        if claim.allocation is None:
            return living_claim(paths) is not None
        return claim.allocation in self._living and claim.start == self._files[claim.allocation].last_start

    def _unsettled(self, cell: PlannedCell, paths: TrialPaths, claim: Claim, key: Key) -> TrialState:
        """Return what a trial will be whose allocation ended under it, once somebody settles it."""
        state = self._states.get(claim.allocation) if claim.allocation is not None else None
        if state is None or state.job is None:
            note = f"attempt {claim.attempt} ended without a word; it is to run again"
            waits_in = self._waits_in(key)
            return TrialState(cell, key[1], paths, "pending", allocation=waits_in, attempt=claim.attempt, note=note)
        if state.activity == "over" and claim.start == self._files[state.paths.number].last_start:
            outcome, because = find_end(state.job, read_document(paths.interrupted, Interruption))
        else:
            outcome, because = "node_fail", f"start {claim.start} of job {state.job.job_id} ended under it"
        attempt, allocation = claim.attempt, self._waits_in(key)
        note = f"{because}; nobody has settled it yet"
        if outcome in INTERRUPTIONS and not self._is_last(key, claim.attempt):
            note = f"attempt {claim.attempt}: {outcome} ({because}); it is to run again"
            outcome = "pending"
        return TrialState(cell, key[1], paths, outcome, allocation=allocation, attempt=attempt, note=note)

    def _ended(self, cell: PlannedCell, paths: TrialPaths, document: Outcome, key: Key) -> TrialState:
        attempt = document.attempt
        if self._is_final(key, document):
            return TrialState(cell, key[1], paths, document.outcome, document, attempt=attempt)
        why = f" ({document.because})" if document.because else ""
        note = f"attempt {attempt}: {document.outcome}{why}; it is to run again"
        waits_in = self._waits_in(key)
        return TrialState(cell, key[1], paths, "pending", document, allocation=waits_in, attempt=attempt, note=note)

    def _waits_in(self, key: Key) -> int | None:
        number, _ = self._entry(key)
        return number if number in self._living else None


def read_sweep(folder: Path, ask: Ask | None = None) -> SweepState:
    """Look at a whole sweep.

    Raises:
        InvalidInput: there is no sweep in this folder.
    """
    return SweepReader(folder, ask).read()


def _not_in_plan(sweep: Sweep, paths: SweepPaths) -> Iterable[str]:
    planned = {cell.cell_id for cell in sweep.cells}
    for name in sorted(os.listdir(paths.folder)):
        if name not in planned and any((paths.folder / name).glob("*/trial.json")):
            yield name
