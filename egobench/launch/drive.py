"""Drives a sweep: starts what is missing, watches it, settles what ended early, and starts again what may be."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from egobench.errors import EXIT_ENVIRONMENT, EXIT_INTERRUPTED, EXIT_OK, EnvironmentProblem
from egobench.launch.cancel import cancel_sweep
from egobench.launch.fleet import AllocationState, Fleet
from egobench.launch.follow import Follower
from egobench.launch.launchers import Orders, fleet_of
from egobench.launch.packing import Packing, QueueFull
from egobench.launch.prepare import packing_for, settle_orphans, startable
from egobench.launch.queue.poll import ask
from egobench.launch.reap import Reaper
from egobench.launch.settle import SLURMS_DOING, settle
from egobench.launch.sweep import Todo, Wish, exit_code, lock_sweep, write_plan
from egobench.launch.watch.progress import Observer
from egobench.launch.watch.reader import SweepReader
from egobench.launch.watch.state import SweepState
from egobench.records.allocation import Allocation, AllocationPaths, CancelRequest, TrialRef, list_allocations
from egobench.records.store import is_full, read_document

LOOK_EVERY_S: Final = {"local": 0.25, "slurm": 1.0}
SLOW: Final = 4.0
"""On a slow file system the pause is this many times as long as the look."""
FRUITLESS: Final = 2
"""Allocations that may end by themselves without launching a trial that they were given."""
FRUITLESS_BY_SLURM: Final = 10
"""... and that Slurm may end so: nodes fail, jobs are preempted."""


def run_sweep(todo: Todo, wish: Wish, observer: Observer) -> int:
    """Run what is missing and watch it; return the exit code.

    Raises:
        SweepBusy: another process drives this folder.
        EnvironmentProblem: nothing can run here, or the machine, not a trial, ended an allocation.
    """
    fleet = fleet_of(Orders(todo.sweep, todo.paths, todo.retry, wish.fail_fast))
    lock = lock_sweep(todo.paths)
    try:
        write_plan(todo)
        on_slurm = todo.sweep.site.launcher == "slurm"
        follower = Follower(SweepReader(todo.paths.folder, ask if on_slurm else None), todo.asked, todo.retry, observer)
        reaper = Reaper() if on_slurm else None
        return Driver(todo, wish, fleet, follower, observer, reaper).run()
    finally:
        lock.release()


@dataclass
class Driver:
    """One call of `egobench sweep`, from start to end."""

    todo: Todo
    wish: Wish
    fleet: Fleet
    follower: Follower
    observer: Observer
    reaper: Reaper | None = None
    """None: no Slurm site."""
    _living: dict[AllocationPaths, Allocation] = field(default_factory=dict)
    _closed: set[int] = field(default_factory=set)
    """Allocations whose end has been dealt with, by this call or before it."""
    _started: set[int] = field(default_factory=set)
    _left: dict[TrialRef, str] = field(default_factory=dict)
    """Trials that this call does not start again, and why."""
    _problem: str = ""
    """Why trials are left, where it is the machine's fault."""
    _fruitless: Counter[TrialRef] = field(default_factory=Counter)
    _launched: dict[TrialRef, int] = field(default_factory=dict)
    """Launches of a trial when it was last given to an allocation."""
    _said: str = ""
    _orphans: set[int] = field(default_factory=set)
    """Allocations of which nobody knows yet whether Slurm has their jobs."""
    _at_first: set[TrialRef] = field(default_factory=set)
    """Trials that were missing when this call began."""
    _full_with: int | None = None
    """Allocations that lived when Slurm took no more jobs."""

    @property
    def _on_slurm(self) -> bool:
        return self.todo.sweep.site.launcher == "slurm"

    def run(self) -> int:
        """Drive to the end.

        Raises:
            EnvironmentProblem: the machine ended an allocation, and trials are left.
        """
        try:
            self._find_living()
            every_s, began_s = LOOK_EVERY_S[self.todo.sweep.site.launcher], time.monotonic()
            while self._go_on():
                took_s = time.monotonic() - began_s
                time.sleep(max(every_s, SLOW * took_s))
                began_s = time.monotonic()
        except KeyboardInterrupt:
            self._say_how_to_return()
            return EXIT_INTERRUPTED
        if self.wish.detach and self._living:
            self._say_how_to_watch("submitted")
            return EXIT_OK
        missing = len(self.follower.missing())
        if missing and self._problem:
            raise EnvironmentProblem(f"{self._problem}; {missing} trials are left; run the same command again to go on")
        return exit_code(self.todo)

    def _find_living(self) -> None:
        self._orphans = self.fleet.recover()
        state = self.follower.look()
        # What was over before this call needs no word, unless nobody has settled it yet.
        self._closed = {
            number for number, files in state.files.items() if files.ended is not None or not self._on_slurm
        }
        self._closed -= {one.paths.number for one in state.allocations}
        self._at_first = set(self.follower.missing())
        living = state.allocations
        if living and not self._on_slurm:
            found = living[0].paths
            self.observer.say(f"re-attached to allocation {found.number}, which still runs; log: {found.log}")
        elif living:
            self.observer.say(f"re-attached to {len(living)} allocations, which still wait or run")

    def _go_on(self) -> bool:
        """Look once, do what is to be done, and return whether there is more to wait for."""
        if self._orphans:
            self._orphans = self.fleet.recover()
        state = self.follower.look()
        over = [one for one in state.over if one.paths.number not in self._closed | self._orphans]
        for one in over:
            settle(one)
        orphaned = settle_orphans(self.todo, self.follower.missing(), self.follower.known)
        if over or orphaned:
            # All trials of an allocation that is over: it may have come and gone since the last look.
            state = self.follower.look(
                [*orphaned, *(ref for one in over for ref in state.files[one.paths.number].refs)]
            )
        for one in over:
            self._closed.add(one.paths.number)
            self._close(one, state)
        self._note_living(state)
        for job_id in self.reaper.look(state.files.values()) if self.reaper is not None else ():
            self.observer.say(f"job {job_id} still held its GPUs although its worker was done: cancelled")
        if self.wish.fail_fast and self._has_failed():
            return self._fail_fast()
        return self._start_missing() or bool(self._living and not self.wish.detach)

    def _note_living(self, state: SweepState) -> None:
        """Remember whose trials are under way: of every allocation whose end has not been dealt with."""
        found = (files for number, files in state.files.items() if number not in self._closed)
        self._living = {files.paths: files.document for files in found}

    def _close(self, over: AllocationState, state: SweepState) -> None:
        """Draw the conclusions from an allocation that is over."""
        number, missing = over.paths.number, set(self.follower.missing())
        unsettled = [ref for ref in state.files[number].refs if ref in missing]
        if (request := read_document(over.paths.cancel, CancelRequest)) is not None:
            cancelled = [ref for ref in unsettled if request.leaves_out(ref.cell_id)]
            self._left |= dict.fromkeys(cancelled, f"cancelled by {request.by}")
            unsettled = [ref for ref in unsettled if ref not in self._left]
        if not unsettled:
            return
        why, is_final = self._why_unsettled(over, state)
        if is_final:
            self._left |= dict.fromkeys(unsettled, why)
        else:
            self._count_fruitless(number, unsettled, state, why)
        if why:
            self.observer.say(f"allocation {number}: {why}; {len(unsettled)} of its trials are not done")

    def _count_fruitless(self, number: int, unsettled: Sequence[TrialRef], state: SweepState, why: str) -> None:
        """Give up trials whose allocations, one after another, launch nothing."""
        refs, ended = state.files[number].refs, state.files[number].ended
        if number not in self._started or any(self._launches(ref) > self._launched[ref] for ref in refs):
            self._fruitless.subtract({ref: self._fruitless[ref] for ref in refs})
            return
        is_slurms_doing = ended is None or (ended.state != "" and ended.state in SLURMS_DOING)
        limit = FRUITLESS_BY_SLURM if is_slurms_doing else FRUITLESS
        self._fruitless.update(unsettled)
        given_up = [ref for ref in unsettled if self._fruitless[ref] >= limit]
        if given_up:
            self._problem = f"{limit} allocations in a row launched no trial; the last: {why or 'no reason'}"
            self._left |= dict.fromkeys(given_up, self._problem)

    def _launches(self, ref: TrialRef) -> int:
        return self.follower.state(ref).attempt

    def _why_unsettled(self, over: AllocationState, state: SweepState) -> tuple[str, bool]:
        """Return why an allocation left trials undone, and whether this call is to leave them too."""
        files = state.files[over.paths.number]
        ended, log = files.ended, f"its log: {over.paths.log}"
        if self._on_slurm and files.job is None:
            return "Slurm never got it", False
        if ended is None and files.job is None:
            if over.paths.number not in self._started:
                return "", False  # it vanished before this call came, and is replaced
            self._problem = self._disk_is_full() or f"the allocation was killed; {log}"
            return self._problem, True
        if ended is None:
            return "Slurm no longer knows it", False
        why = ended.because or ended.state
        if ended.exit_code == EXIT_ENVIRONMENT and not ended.state:
            self._problem = f"{why or self._disk_is_full() or 'the allocation met a problem of the machine'}; {log}"
            return self._problem, True
        if ended.state == "CANCELLED" or (ended.exit_code == EXIT_INTERRUPTED and not ended.state):
            return why, True
        if files.job is not None:
            return why, False
        if ended.exit_code != EXIT_OK:
            self._problem = f"the allocation failed ({why or f'exit code {ended.exit_code}'}); {log}"
        return self._problem or why, True

    def _disk_is_full(self) -> str:
        # On a full disk the allocation could not leave its reason behind.
        folder = self.todo.paths.folder
        if not is_full(folder):
            return ""
        return f"{folder}: cannot write: the disk is full; free some space or choose another --runs folder"

    def _start_missing(self) -> bool:
        """Start what is neither done, nor under way, nor given up; return whether anything was started."""
        if self._full_with is not None and len(self._living) >= self._full_with:
            return False  # until one of the jobs is over
        self._full_with = None
        wanted = [ref for ref in self.follower.missing() if ref not in self._left]
        refs = startable(wanted, self._living.values(), self.follower.known)
        if not refs:
            return False
        packing = packing_for(self.todo, self.wish, refs, self.follower.known, self._living)
        if packing.because and packing.because != self._said:
            self._said = packing.because
            self.observer.say(f"{len(packing.later)} trials are left for later: {packing.because}")
        return self._start(packing) if packing.arrays else False

    def _start(self, packing: Packing) -> bool:
        first = max((found.number for found in list_allocations(self.todo.paths)), default=0) + 1
        given = [ref for array in packing.arrays for draft in array.drafts for ref in draft.trials]
        self._launched |= {ref: self._launches(ref) for ref in given}
        try:
            started = self.fleet.start(packing, first)
        except QueueFull as full:
            self.observer.say(str(full))
            state = self.follower.look()
            if not state.allocations:
                raise
            self._note_living(state)
            self._full_with = len(self._living)
            return True
        self._started |= {paths.number for paths in started}
        for note in packing.notes:
            self.observer.say(note)
        if self._on_slurm:
            jobs = f"{len(started)} jobs in {len(packing.arrays)} arrays"
            self.observer.say(f"{len(given)} trials submitted as {jobs}; their logs: {self.todo.paths.slurm}")
        else:
            self.observer.say(f"{len(given)} trials to run in allocation {first}; log: {started[0].log}")
        return bool(started)

    def _has_failed(self) -> bool:
        documents = (self.follower.known(ref) for ref in self._at_first - set(self.follower.missing()))
        return any(document is not None and document.outcome != "ok" for document in documents)

    def _fail_fast(self) -> bool:
        self._left |= dict.fromkeys(self.follower.missing(), "fail-fast")
        if self._on_slurm and self._living:
            self.observer.say(f"fail-fast: {cancel_sweep(self.todo.paths)}")
        return bool(self._living)

    def _say_how_to_return(self) -> None:
        living = self.follower.look().allocations
        if not living:
            self.observer.say("interrupted; run the same command again to go on")
            return
        what = f"{len(living)} allocations go on" if self._on_slurm else "the allocation goes on"
        self._say_how_to_watch(f"interrupted; {what} without this command")

    def _say_how_to_watch(self, head: str) -> None:
        name = self.todo.paths.folder
        self.observer.say(head)
        self.observer.say(f"  watch it:  egobench status {name} --watch   (or run the same command again)")
        self.observer.say(f"  end it:    egobench cancel {name}")
