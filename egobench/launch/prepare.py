"""What the driver hands to its fleet next, and the children whose parents failed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from egobench.launch.local import pack_locally
from egobench.launch.packing import Living, Packing, pack
from egobench.launch.sweep import Todo, Wish
from egobench.launch.watch.expected import Expected
from egobench.launch.watch.files import read_allocations
from egobench.launch.watch.hours import used_gpu_hours
from egobench.records.allocation import Allocation, AllocationPaths, Job, TrialRef
from egobench.records.outcome import Outcome
from egobench.records.parents import give_up, look_at_parent
from egobench.records.store import read_document

Known = Callable[[TrialRef], Outcome | None]
"""Tells the outcome record that was last seen of a trial."""


def packing_for(
    todo: Todo, wish: Wish, refs: Sequence[TrialRef], known: Known, open_: Mapping[AllocationPaths, Allocation]
) -> Packing:
    """Pack trials for the sweep's site, as far as its limits and the budget allow."""
    site = todo.sweep.site
    gpus = {cell.cell_id: cell.num_ranks for cell in todo.sweep.runnable()}
    if site.launcher == "local":
        return pack_locally(refs, max(gpus[ref.cell_id] for ref in refs)) if not open_ else Packing()
    runtimes = {cell.cell_id: todo.sweep.runtime_of(cell) for cell in todo.sweep.runnable()}
    left = None
    if wish.budget_gpu_hours is not None:
        left = wish.budget_gpu_hours - used_gpu_hours(todo.paths) - sum(map(_still_allowed, open_.values()))
    return pack(
        refs,
        site,
        lambda ref: gpus[ref.cell_id],
        expectation(todo, known),
        runtime_of=lambda ref: runtimes[ref.cell_id],
        first=set(todo.sweep.baselines.values()),
        living=living_arrays(open_),
        gpu_hours_left=left,
    )


def _still_allowed(allocation: Allocation) -> float:
    # In full, although it may have used some of it: a budget is kept by erring on its side.
    return allocation.gpu_hours_at_most or allocation.num_gpus * (allocation.time_limit_min or 0) / 60


def expectation(todo: Todo, known: Known) -> Callable[[TrialRef], float]:
    """Return how long a trial is expected to take, s.

    As long as finished ones of its cell; else as predicted, corrected by how finished cells compared with their own
    prediction; else as the site says.
    """
    site = todo.sweep.site
    expected = Expected.of(todo.sweep.cells, map(known, todo.asked))

    def expected_s(ref: TrialRef) -> float:
        if ref.cell_id in expected.observed_s:
            return expected.observed_s[ref.cell_id]
        return min(expected.predicted_s.get(ref.cell_id, site.expected_trial_min * 60), site.trial_time_limit_s)

    return expected_s


def living_arrays(open_: Mapping[AllocationPaths, Allocation]) -> list[Living]:
    """Group allocations that are in the queue by the array they were submitted in."""
    arrays: dict[str, list[tuple[AllocationPaths, Job]]] = defaultdict(list)
    for paths in open_:
        if (job := read_document(paths.job, Job)) is not None:
            arrays[job.array_id].append((paths, job))
    return [
        Living(
            allocations=tuple(paths.number for paths, _ in members),
            num_gpus=open_[members[0][0]].num_gpus,
            parallel=members[0][1].parallel,
            trials=tuple(
                ((ref.cell_id, ref.trial), paths.number) for paths, _ in members for ref in open_[paths].trials
            ),
        )
        for members in arrays.values()
    ]


def dry_packing(todo: Todo, wish: Wish) -> Packing:
    """Return what `egobench sweep` would submit now; asks nobody and writes nothing."""
    outcomes: dict[TrialRef, Outcome | None] = {}

    def known(ref: TrialRef) -> Outcome | None:
        if ref not in outcomes:
            outcomes[ref] = read_document(todo.paths.trial(ref.cell_id, ref.trial).outcome, Outcome)
        return outcomes[ref]

    open_ = {files.paths: files.document for files in read_allocations(todo.paths) if files.ended is None}
    refs = startable(todo.missing(), open_.values(), known)
    return packing_for(todo, wish, refs, known, open_)


def startable(missing: Iterable[TrialRef], open_: Iterable[Allocation], known: Known) -> list[TrialRef]:
    """Return the trials that nobody is going to run, and whose parents are done or will be."""
    under_way = {(ref.cell_id, ref.trial) for allocation in open_ for ref in allocation.trials}
    chosen: dict[tuple[str, int], TrialRef] = {}
    for ref in missing:  # parents come first in the order of trials
        key = (ref.cell_id, ref.trial)
        if key in under_way:
            continue
        above = None if ref.parent is None else (ref.parent, ref.trial)
        if above is None or above in under_way or above in chosen or _has_outcome(known, above):
            chosen[key] = ref
    return list(chosen.values())


def _has_outcome(known: Known, key: tuple[str, int]) -> bool:
    return known(TrialRef(cell_id=key[0], trial=key[1])) is not None


def settle_orphans(todo: Todo, missing: Iterable[TrialRef], known: Known) -> list[TrialRef]:
    """Record the trials that will never run because their parent failed, and return them."""
    orphans = []
    for ref in missing:
        parent = known(TrialRef(cell_id=ref.parent, trial=ref.trial)) if ref.parent is not None else None
        if parent is None or parent.outcome == "ok":
            continue
        readiness, parent = look_at_parent(todo.paths, ref, todo.retry, todo.asked)
        if readiness == "failed" and parent is not None:
            give_up(todo.paths.trial(ref.cell_id, ref.trial), ref, parent)
            orphans.append(ref)
    return orphans
