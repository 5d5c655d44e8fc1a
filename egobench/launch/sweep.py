"""`egobench sweep`: what is missing of a plan, and the documents that say so."""

from __future__ import annotations

import datetime
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from egobench.errors import EXIT_OK, EXIT_TRIALS_FAILED, SweepBusy
from egobench.launch.foreseen import as_foreseen
from egobench.launch.order import trial_order
from egobench.plan.expand import plan, to_cell
from egobench.plan.select import matches, parse_only
from egobench.records.allocation import Retry, TrialRef, is_settled
from egobench.records.lock import Lock, read_holder, take_lock_for_all
from egobench.records.outcome import Outcome, OutcomeName
from egobench.records.store import SweepPaths, read_document, write_document
from egobench.records.sweep import PlannedCell, Sweep
from egobench.records.trial import Placement, Trial
from egobench.spec.keep import Save
from egobench.spec.matrix import load_matrix

WRITERS: Final = 16
"""A network file system answers slowly, but many at once."""


@dataclass(frozen=True)
class Wish:
    """What one call of `egobench sweep` asks for beyond the matrix."""

    site: str | None = None
    """Another site than the matrix names."""
    only: str | None = None
    """Selection of cells, as in `--only 'strategy=ddp,gpus=2|4'`."""
    limit: int | None = None
    """At most so many trials."""
    retry: frozenset[OutcomeName] = frozenset()
    """Run finished trials with these outcomes once more."""
    max_attempts: int = 3
    """Launches of one trial at most."""
    budget_gpu_hours: float | None = None
    """Of the sweep as a whole, what earlier calls used included."""
    fail_fast: bool = False
    detach: bool = False
    """Return as soon as everything is submitted."""
    canary: float = 0.0
    """Share of the cells predicted to run out of memory that run nevertheless."""


@dataclass(frozen=True)
class Todo:
    """A plan on disk, and which of its trials this call is about."""

    sweep: Sweep
    paths: SweepPaths
    asked: tuple[TrialRef, ...]
    """In the order in which they run."""
    retry: Retry

    def missing(self) -> list[TrialRef]:
        """Return the trials that have not the outcome asked for."""
        return [ref for ref in self.asked if not is_settled(self.paths, ref, self.retry)]


def look_up(matrix: Path, runs: Path, wish: Wish) -> Todo:
    """Plan the matrix and find out what is asked for; writes nothing.

    Raises:
        InvalidInput: mistakes in the matrix or in `only`.
    """
    planned = plan(load_matrix(matrix, wish.site))
    paths = SweepPaths(runs.resolve() / planned.name)
    sweep = as_foreseen(planned, paths, wish.canary)
    where = parse_only(wish.only) if wish.only else {}
    chosen = {cell.cell_id: cell for cell in sweep.runnable() if matches(where, cell.axes)}
    refs = [_ref(paths, chosen[cell_id], trial, wish) for cell_id, trial in trial_order(sweep) if cell_id in chosen]
    retry = Retry(outcomes=tuple(sorted(wish.retry)), max_attempts=wish.max_attempts)
    todo = Todo(sweep, paths, tuple(refs), retry)
    if wish.limit is None:
        return todo
    return Todo(sweep, paths, tuple(todo.missing()[: wish.limit]), retry)


def _ref(paths: SweepPaths, cell: PlannedCell, trial: int, wish: Wish) -> TrialRef:
    # Whether an outcome is to be tried again is known by its text; most trials are not, and need not be read twice.
    outcome = read_document(paths.trial(cell.cell_id, trial).outcome, Outcome) if wish.retry else None
    again = outcome is not None and outcome.outcome in wish.retry
    attempt = outcome.attempt + 1 if outcome is not None and again else 1
    return TrialRef(cell_id=cell.cell_id, trial=trial, attempt=attempt, parent=cell.parent, needs=cell.needs)


def lock_sweep(paths: SweepPaths) -> Lock:
    """Become the one process that drives this folder.

    Raises:
        SweepBusy: another one does.
    """
    lock = take_lock_for_all(paths.lock)
    if lock is None:
        raise SweepBusy(_who_drives(paths))
    return lock


def _who_drives(paths: SweepPaths) -> str:
    holder = read_holder(paths.lock)
    who = f"pid {holder.pid} on {holder.host} since {_clock(holder.since)}" if holder else "another process"
    return (
        f"{paths.folder}: `egobench sweep` already drives this folder ({who}); "
        f"see `egobench status {paths.folder.name}`, or end that process first"
    )


def _clock(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


def write_plan(todo: Todo) -> None:
    """Write the plan, and the trials that are missing."""
    sweep, paths = todo.sweep, todo.paths
    if read_document(paths.sweep, Sweep) != sweep:
        write_document(paths.sweep, sweep)
    cells = {cell.cell_id: cell for cell in sweep.runnable()}

    def write(ref: TrialRef) -> None:
        document = trial_of(sweep, cells[ref.cell_id], ref.trial, paths)
        target = paths.trial(ref.cell_id, ref.trial).trial
        if read_document(target, Trial) != document:
            write_document(target, document)

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, todo.missing()))


def trial_of(sweep: Sweep, planned: PlannedCell, trial: int, paths: SweepPaths) -> Trial:
    """Make the document of one trial."""
    site = sweep.site
    placement = Placement(
        site=sweep.site_name,
        device=site.device,
        threads_per_rank=site.threads_per_rank,
        binding=site.binding,
        num_nodes=nodes_of(sweep, planned),
        trial_time_limit_s=site.trial_time_limit_s,
        quiet_limit_s=site.quiet_limit_s,
        stall_limit_s=site.stall_limit_s,
        base_folder=sweep.base_folder,
        cache_folder=str(paths.folder.parent / ".cache"),
    )
    profile = sweep.profile if sweep.profile is not None and matches(sweep.profile.where, planned.axes) else None
    return Trial(
        sweep=sweep.name,
        cell=to_cell(sweep, planned),
        trial=trial,
        placement=placement,
        save=_saved(sweep, planned),
        profile=profile,
        parent=planned.parent,
    )


def _saved(sweep: Sweep, planned: PlannedCell) -> Save:
    """Return what the trials of a cell keep: the whole model where a variant is made from it."""
    variant = sweep.variant_of(planned)
    is_source = variant is not None and variant.kind == "distilled"
    is_source = is_source or any(cell.parent == planned.cell_id and cell.axes.get("variant") for cell in sweep.cells)
    return sweep.save.model_copy(update={"export": "merged"}) if is_source else sweep.save


def nodes_of(sweep: Sweep, planned: PlannedCell) -> int:
    """Return how many nodes a trial of the cell takes."""
    return math.ceil(planned.num_ranks / sweep.site.gpus_per_node)


def exit_code(todo: Todo) -> int:
    """Return 0 if every trial asked for is ok, 3 if one is not."""
    documents = (read_document(todo.paths.trial(ref.cell_id, ref.trial).outcome, Outcome) for ref in todo.asked)
    return EXIT_OK if all(found is not None and found.outcome == "ok" for found in documents) else EXIT_TRIALS_FAILED
