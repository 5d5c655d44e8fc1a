"""`egobench sweep`: do what is missing of a plan, watch it, and come back to it after any interruption."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from egobench.errors import (
    EXIT_ENVIRONMENT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TRIALS_FAILED,
    EnvironmentProblem,
    SweepBusy,
)
from egobench.launch.follow import End, Follower
from egobench.launch.launchers import Launcher, launcher_of
from egobench.launch.order import trial_order
from egobench.launch.progress import Observer
from egobench.launch.state import living_allocation
from egobench.plan.expand import plan, to_cell
from egobench.plan.select import matches, parse_only
from egobench.records.allocation import Allocation, AllocationPaths, TrialRef, is_settled, list_allocations
from egobench.records.lock import read_holder, take_lock
from egobench.records.outcome import Outcome, OutcomeName
from egobench.records.store import SweepPaths, disk_errors, read_document, write_document
from egobench.records.sweep import PlannedCell, Sweep
from egobench.records.trial import Placement, Trial
from egobench.spec.matrix import load_matrix

FULL_BYTES: Final = 64 * 1024
"""With less free than this, documents no longer fit."""


@dataclass(frozen=True)
class Wish:
    """What one call of `egobench sweep` asks for beyond the matrix."""

    only: str | None = None
    """Selection of cells, as in `--only 'strategy=ddp,gpus=2|4'`."""
    limit: int | None = None
    """At most so many trials."""
    retry: frozenset[OutcomeName] = frozenset()
    """Run finished trials with these outcomes once more."""
    fail_fast: bool = False


@dataclass(frozen=True)
class Todo:
    """A plan on disk, and which of its trials this call is about."""

    sweep: Sweep
    paths: SweepPaths
    asked: tuple[TrialRef, ...]
    """In the order in which they run."""

    def missing(self) -> list[TrialRef]:
        """Return the trials that have not the outcome asked for."""
        return [ref for ref in self.asked if not is_settled(self.paths, ref)]


def look_up(matrix: Path, runs: Path, wish: Wish) -> Todo:
    """Plan the matrix and find out what is asked for; writes nothing.

    Raises:
        InvalidInput: mistakes in the matrix or in `only`.
    """
    sweep = plan(load_matrix(matrix))
    paths = SweepPaths(runs.resolve() / sweep.name)
    where = parse_only(wish.only) if wish.only else {}
    chosen = {cell.cell_id for cell in sweep.runnable() if matches(where, cell.axes)}
    refs = [_ref(paths, cell_id, trial, wish) for cell_id, trial in trial_order(sweep) if cell_id in chosen]
    todo = Todo(sweep, paths, tuple(refs))
    if wish.limit is None:
        return todo
    return Todo(sweep, paths, tuple(todo.missing()[: wish.limit]))


def _ref(paths: SweepPaths, cell_id: str, trial: int, wish: Wish) -> TrialRef:
    outcome = read_document(paths.trial(cell_id, trial).outcome, Outcome)
    again = outcome is not None and outcome.outcome in wish.retry
    return TrialRef(cell_id=cell_id, trial=trial, attempt=outcome.attempt + 1 if outcome is not None and again else 1)


def run_sweep(todo: Todo, wish: Wish, observer: Observer) -> int:
    """Run what is missing and watch it; return the exit code.

    Raises:
        SweepBusy: another process drives this folder.
        EnvironmentProblem: nothing can run here, or the allocation ended before its trials did.
    """
    launcher = launcher_of(todo.sweep.site, todo.sweep.site_name)
    lock = take_lock(todo.paths.lock)
    if lock is None:
        raise SweepBusy(_who_drives(todo.paths))
    try:
        _write_plan(todo)
        return _drive(todo, wish, launcher, observer)
    finally:
        lock.close()


def _who_drives(paths: SweepPaths) -> str:
    holder = read_holder(paths.lock)
    who = f"pid {holder.pid} on {holder.host} since {_clock(holder.since)}" if holder else "another process"
    return (
        f"{paths.folder}: `egobench sweep` already drives this folder ({who}); "
        f"see `egobench status {paths.folder.name}`, or end that process first"
    )


def _clock(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


def _write_plan(todo: Todo) -> None:
    sweep, paths = todo.sweep, todo.paths
    if read_document(paths.sweep, Sweep) != sweep:
        write_document(paths.sweep, sweep)
    cells = {cell.cell_id: cell for cell in sweep.runnable()}
    for ref in todo.missing():
        document = trial_of(sweep, cells[ref.cell_id], ref.trial, paths)
        target = paths.trial(ref.cell_id, ref.trial).trial
        if read_document(target, Trial) != document:
            write_document(target, document)


def trial_of(sweep: Sweep, planned: PlannedCell, trial: int, paths: SweepPaths) -> Trial:
    """Make the document of one trial."""
    site = sweep.site
    placement = Placement(
        site=sweep.site_name,
        device=site.device,
        threads_per_rank=site.threads_per_rank,
        trial_time_limit_s=site.trial_time_limit_s,
        quiet_limit_s=site.quiet_limit_s,
        stall_limit_s=site.stall_limit_s,
        base_folder=sweep.base_folder,
        cache_folder=str(paths.folder.parent / ".cache"),
    )
    return Trial(sweep=sweep.name, cell=to_cell(sweep, planned), trial=trial, placement=placement)


def _drive(todo: Todo, wish: Wish, launcher: Launcher, observer: Observer) -> int:
    follower = Follower(todo.sweep, todo.paths, todo.asked, observer)
    try:
        while True:
            if (living := living_allocation(todo.paths)) is not None:
                observer.say(f"re-attached to allocation {living.number}, which still runs; log: {living.log}")
                end = follower.follow(living, None)
                if todo.missing() and end.because:  # somebody or something stopped it; one that vanished is replaced
                    return _stopped(todo, living, end)
                continue
            missing = todo.missing()
            if not missing:
                return exit_code(todo)
            paths, end = _run_allocation(todo, wish, missing, launcher, follower, observer)
            if todo.missing():
                return _stopped(todo, paths, end)
    except KeyboardInterrupt:
        _say_how_to_return(todo, observer)
        return EXIT_INTERRUPTED


def _run_allocation(
    todo: Todo,
    wish: Wish,
    missing: Sequence[TrialRef],
    launcher: Launcher,
    follower: Follower,
    observer: Observer,
) -> tuple[AllocationPaths, End]:
    numbers = [found.number for found in list_allocations(todo.paths)]
    paths = AllocationPaths(todo.paths.allocations / str(max(numbers, default=0) + 1))
    with disk_errors(paths.folder):
        paths.folder.mkdir(parents=True)
    write_document(paths.allocation, Allocation(sweep=todo.sweep.name, trials=tuple(missing), fail_fast=wish.fail_fast))
    lock = take_lock(paths.lock, wait_s=1.0)
    if lock is None:
        raise SweepBusy(f"{paths.folder}: somebody else took this new allocation")
    try:
        started = launcher(paths, lock, todo.sweep.site)
    finally:
        lock.close()  # the allocation holds it now
    observer.say(f"{len(missing)} trials to run in allocation {paths.number}; log: {paths.log}")
    return paths, follower.follow(paths, started)


def _stopped(todo: Todo, paths: AllocationPaths, end: End) -> int:
    """Say what an allocation that ended early means.

    Raises:
        EnvironmentProblem: the machine, not a trial, ended it.
    """
    left = len(todo.missing())
    again = f"{left} trials are left; its log: {paths.log}; run the same command again to go on"
    if end.exit_code is None or end.exit_code < 0:
        raise EnvironmentProblem(f"the allocation was killed; {again}")
    if end.exit_code == EXIT_ENVIRONMENT:
        raise EnvironmentProblem(f"{end.because or _unsaid(todo.paths)}; {again}")
    if end.exit_code not in (EXIT_OK, EXIT_INTERRUPTED):
        raise EnvironmentProblem(f"the allocation failed ({end.because or f'exit code {end.exit_code}'}); {again}")
    return EXIT_TRIALS_FAILED


def _unsaid(paths: SweepPaths) -> str:
    # On a full disk the allocation could not leave its reason behind.
    if shutil.disk_usage(paths.folder).free < FULL_BYTES:
        return f"{paths.folder}: cannot write: the disk is full; free some space or choose another --runs folder"
    return "the allocation met a problem of the machine"


def _say_how_to_return(todo: Todo, observer: Observer) -> None:
    name = todo.paths.folder
    if living_allocation(todo.paths) is None:
        observer.say("interrupted; run the same command again to go on")
        return
    observer.say("interrupted; the allocation goes on without this command")
    observer.say(f"  watch it:  egobench status {name} --watch   (or run the same command again)")
    observer.say(f"  end it:    egobench cancel {name}")


def exit_code(todo: Todo) -> int:
    """Return 0 if every trial asked for is ok, 3 if one is not."""
    documents = (read_document(todo.paths.trial(ref.cell_id, ref.trial).outcome, Outcome) for ref in todo.asked)
    return EXIT_OK if all(found is not None and found.outcome == "ok" for found in documents) else EXIT_TRIALS_FAILED
