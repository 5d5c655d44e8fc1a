"""Which trials go into which allocation, and which allocations into which array. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from egobench.errors import EnvironmentProblem
from egobench.launch.sharing import Demand, share
from egobench.records.allocation import TrialRef
from egobench.spec.site import Site

Key = tuple[str, int]
"""cell_id and number of a trial."""
SAFETY: Final = 1.5
"""An allocation may take so many times what its trials are expected to take."""
STARTUP_S: Final = 120
"""Until the first trial runs: imports from a cold file system."""
NICE_STEP: Final = 10
STEPS_MIN: Final = (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 1080, 1440)
"""Time limits are rounded up to these, so that there are few arrays; beyond, to whole days."""


@dataclass(frozen=True)
class Draft:
    """An allocation to be."""

    trials: tuple[TrialRef, ...]
    num_nodes: int
    gpus_per_node: int
    time_limit_min: int | None
    """None: no limit (a local allocation)."""
    expected_s: float = 0.0
    """What its trials are expected to take together."""
    runtime: str = ""
    """Whose set-up of the site it gets; empty: the site's own."""

    @property
    def num_gpus(self) -> int:
        return self.num_nodes * self.gpus_per_node

    @property
    def gpu_hours_at_most(self) -> float:
        """Return what the time limit allows; 0 where there is none."""
        return self.num_gpus * (self.time_limit_min or 0) / 60


@dataclass(frozen=True)
class ArrayDraft:
    """A submission to be: allocations of one resource class."""

    drafts: tuple[Draft, ...]
    parallel: int
    """Tasks that may run at once, so that all arrays together stay below the site's `max_gpus`."""
    nice: int = 0
    """What can wait has more."""
    after_arrays: tuple[int, ...] = ()
    """Arrays of the same packing, by index, that must be over first."""
    after_allocations: tuple[int, ...] = ()
    """Allocations that are in the queue already and must be over first."""


@dataclass(frozen=True)
class Packing:
    """Submissions, in the order in which they are made."""

    arrays: tuple[ArrayDraft, ...] = ()
    later: tuple[TrialRef, ...] = ()
    """Trials that cannot be submitted now."""
    because: str = ""
    """Why: the queue is full, or the budget is used up."""
    notes: tuple[str, ...] = field(default=())
    """What the user should know about it."""
    is_budgeted: bool = False
    """The allocations may not use more than `gpu_hours_at_most`, over all their starts."""


@dataclass(frozen=True)
class Living:
    """A submission that waits or runs already."""

    allocations: tuple[int, ...]
    """Those that are not over."""
    num_gpus: int
    """Of one of them."""
    parallel: int
    """How many of them may run at once."""
    trials: tuple[tuple[Key, int], ...] = ()
    """Trials that it is to run, each with its allocation."""


class QueueFull(EnvironmentProblem):
    """Slurm takes no more jobs of this user now; what was submitted before it said so goes on."""


def pack(
    trials: Sequence[TrialRef],
    site: Site,
    num_gpus: Callable[[TrialRef], int],
    expected_s: Callable[[TrialRef], float],
    *,
    runtime_of: Callable[[TrialRef], str] = lambda _: "",
    first: Collection[str] = (),
    living: Sequence[Living] = (),
    gpu_hours_left: float | None = None,
) -> Packing:
    """Put trials into allocations, and those into arrays, within the limits of the site.

    Args:
        trials: What is to run, the most telling first; nothing that a living allocation is going to run.
        site: Its limits.
        num_gpus: GPUs (ranks) of a trial.
        expected_s: How long a trial is expected to take.
        runtime_of: Whose set-up a trial needs, where the site has one apart; trials of two share no allocation.
        first: Cells that others are compared with: what holds them goes first.
        living: What is in the queue already.
        gpu_hours_left: Budget for all that is submitted now; None: none.
    """
    fitting = _fitting(trials, site, num_gpus)
    bundles = _bundles(fitting, site, num_gpus, expected_s, runtime_of, living)
    plans = sorted(_plans(bundles, site), key=lambda one: (one.generation, one.holds_none_of(first), one.position))
    taken, because = _take(plans, {_key(ref) for ref in trials}, site, living, gpu_hours_left)
    if len(fitting) < len(trials):
        because.insert(0, f"trials, or their parents, need more GPUs than the site's max_gpus ({site.max_gpus})")
    done = {_key(ref) for one in taken for ref in one.draft.trials}
    return Packing(
        arrays=_submissions(_arrays(taken, site), site, living),
        later=tuple(ref for ref in trials if _key(ref) not in done),
        because="; ".join(because),
        is_budgeted=gpu_hours_left is not None,
    )


@dataclass
class Bundle:
    """A trial, with those of its descendants that run after it in the same allocation."""

    shape: tuple[int, int]
    """Nodes, GPUs of each."""
    position: int
    generation: int = 0
    """Over how many allocations its ancestors are spread."""
    trials: list[TrialRef] = field(default_factory=list)
    expected_s: float = 0.0
    runtime: str = ""
    waits_for: set[int] = field(default_factory=set)
    """Living allocations that run its parents."""


@dataclass(frozen=True)
class Plan:
    """A draft and what decides where it goes."""

    draft: Draft
    position: int
    generation: int
    waits_for: frozenset[int]
    parents: frozenset[Key]
    """Trials of other drafts that must be over first."""

    def holds_none_of(self, cells: Collection[str]) -> bool:
        return not any(ref.cell_id in cells for ref in self.draft.trials)


def _key(ref: TrialRef) -> Key:
    return ref.cell_id, ref.trial


def _parent(ref: TrialRef) -> Key | None:
    return None if ref.parent is None else (ref.parent, ref.trial)


def shape_of(num_gpus: int, site: Site) -> tuple[int, int]:
    """Return (nodes, GPUs of each) that a trial takes."""
    return math.ceil(num_gpus / site.gpus_per_node), min(num_gpus, site.gpus_per_node)


def _needed_s(expected_s: float, num_trials: int, site: Site) -> float:
    """Return how long an allocation must last: its trials, start-up, the warning, and one trial that goes astray."""
    trials_s = min(expected_s * SAFETY + site.trial_time_limit_s, num_trials * site.trial_time_limit_s)
    return trials_s + STARTUP_S + site.signal_before_end_s


def _fits(expected_s: float, num_trials: int, site: Site) -> bool:
    return num_trials == 1 or (
        num_trials <= (site.max_trials_per_job or num_trials)
        and expected_s <= site.pack_min * 60
        and _needed_s(expected_s, num_trials, site) <= site.time_limit_min * 60
    )


def time_limit_min(expected_s: float, num_trials: int, site: Site) -> int:
    """Return the time limit of an allocation, rounded up to a step and capped by the site's."""
    needed = math.ceil(_needed_s(expected_s, num_trials, site) / 60)
    step = next((step for step in STEPS_MIN if step >= needed), math.ceil(needed / 1440) * 1440)
    return min(step, site.time_limit_min)


def _fitting(trials: Sequence[TrialRef], site: Site, num_gpus: Callable[[TrialRef], int]) -> list[TrialRef]:
    """Return the trials that the site's cap allows, without the children of those that it does not."""
    if site.max_gpus is None:
        return list(trials)
    refused: set[Key] = set()
    for ref in _parents_first(trials):
        if num_gpus(ref) > site.max_gpus or _parent(ref) in refused:
            refused.add(_key(ref))
    return [ref for ref in trials if _key(ref) not in refused]


def _bundles(
    trials: Sequence[TrialRef],
    site: Site,
    num_gpus: Callable[[TrialRef], int],
    expected_s: Callable[[TrialRef], float],
    runtime_of: Callable[[TrialRef], str],
    living: Sequence[Living],
) -> list[Bundle]:
    """Put children behind their parents, where they need the same nodes and set-up, and fit."""
    found: dict[Key, Bundle] = {}
    bundles: list[Bundle] = []
    runs_in = {key: number for one in living for key, number in one.trials}
    for position, ref in enumerate(_parents_first(trials)):
        seconds, shape, parent = expected_s(ref), shape_of(num_gpus(ref), site), _parent(ref)
        above = found.get(parent) if parent is not None else None
        if above is not None and (above.shape, above.runtime) == (shape, runtime_of(ref)):
            joined = _fits(above.expected_s + seconds, len(above.trials) + 1, site)
        else:
            joined = False
        if above is not None and joined:
            bundle = above
        else:
            bundle = Bundle(shape, position, 0 if above is None else above.generation + 1, runtime=runtime_of(ref))
            bundles.append(bundle)
        if parent in runs_in:
            bundle.waits_for.add(runs_in[parent])
        bundle.trials.append(ref)
        bundle.expected_s += seconds
        found[_key(ref)] = bundle
    return bundles


def _parents_first(trials: Sequence[TrialRef]) -> list[TrialRef]:
    """Return the trials in the given order, but no child before its parent."""
    known = {_key(ref): ref for ref in trials}
    ordered: dict[Key, TrialRef] = {}
    for ref in trials:
        line: list[TrialRef] = []
        ahead: TrialRef | None = ref
        while ahead is not None and _key(ahead) not in ordered:
            line.append(ahead)
            parent = _parent(ahead)
            ahead = known.get(parent) if parent is not None else None
        ordered.update((_key(one), one) for one in reversed(line))
    return list(ordered.values())


def _plans(bundles: Iterable[Bundle], site: Site) -> list[Plan]:
    """Fill allocations with bundles of one kind, all about equally."""
    kinds: dict[object, list[Bundle]] = defaultdict(list)
    for bundle in bundles:
        kinds[bundle.generation, bool(bundle.waits_for), bundle.shape, bundle.runtime].append(bundle)
    return [_plan(group, site) for kind in kinds.values() for group in _groups(kind, site)]


def _groups(bundles: Sequence[Bundle], site: Site) -> list[list[Bundle]]:
    """Cut bundles into as few allocations as can be, then shift the cuts so that none is left with crumbs."""
    total = sum(bundle.expected_s for bundle in bundles)
    fewest = len(_cut(bundles, site, total))
    return _cut(bundles, site, total / fewest) if fewest > 1 else [list(bundles)]


def _cut(bundles: Sequence[Bundle], site: Site, target_s: float) -> list[list[Bundle]]:
    groups: list[list[Bundle]] = []
    seconds, count, before = 0.0, 0, 0.0
    for bundle in bundles:
        fits = _fits(seconds + bundle.expected_s, count + len(bundle.trials), site)
        if not groups or not fits or before + bundle.expected_s / 2 > target_s * len(groups):
            groups.append([])
            seconds, count = 0.0, 0
        groups[-1].append(bundle)
        seconds, count, before = seconds + bundle.expected_s, count + len(bundle.trials), before + bundle.expected_s
    return groups


def _plan(bundles: Sequence[Bundle], site: Site) -> Plan:
    trials = tuple(ref for bundle in bundles for ref in bundle.trials)
    expected_s = sum(bundle.expected_s for bundle in bundles)
    inside = {_key(ref) for ref in trials}
    limit_min = time_limit_min(expected_s, len(trials), site)
    return Plan(
        draft=Draft(trials, *bundles[0].shape, limit_min, expected_s, bundles[0].runtime),
        position=bundles[0].position,
        generation=bundles[0].generation,
        waits_for=frozenset().union(*(bundle.waits_for for bundle in bundles)),
        parents=frozenset(key for ref in trials if (key := _parent(ref)) is not None and key not in inside),
    )


def _take(
    plans: Sequence[Plan], asked: set[Key], site: Site, living: Sequence[Living], gpu_hours_left: float | None
) -> tuple[list[Plan], list[str]]:
    """Return the plans that queue and budget have room for, and why not the others."""
    jobs_left = site.max_submit_jobs - sum(len(one.allocations) for one in living)
    hours_left = math.inf if gpu_hours_left is None else gpu_hours_left
    done: set[Key] = set()
    taken: list[Plan] = []
    reasons: dict[str, None] = {}
    for one in plans:
        hours = one.draft.gpu_hours_at_most
        if jobs_left < 1:
            reasons[f"the site takes {site.max_submit_jobs} jobs at once (max_submit_jobs)"] = None
        elif hours > hours_left:
            reasons[f"the budget: {gpu_hours_left:.1f} GPU-hours were left, and jobs are counted in full"] = None
        elif (one.parents & asked) <= done:
            taken.append(one)
            done |= {_key(ref) for ref in one.draft.trials}
            jobs_left, hours_left = jobs_left - 1, hours_left - hours
    return taken, list(reasons)


def _arrays(plans: Sequence[Plan], site: Site) -> list[tuple[Plan, ...]]:
    """Group plans by resource class, the first of each deciding the order, and cut what is too long."""
    classes: dict[object, list[Plan]] = defaultdict(list)
    for one in plans:
        draft = one.draft
        resources = (draft.num_nodes, draft.gpus_per_node, draft.time_limit_min, draft.runtime)
        classes[one.generation, bool(one.waits_for), resources].append(one)
    size = site.max_array_size
    return [tuple(members[at : at + size]) for members in classes.values() for at in range(0, len(members), size)]


def _submissions(arrays: Sequence[tuple[Plan, ...]], site: Site, living: Sequence[Living]) -> tuple[ArrayDraft, ...]:
    """Share the GPUs out, and say what waits for what."""
    in_use = sum(min(one.parallel, len(one.allocations)) * one.num_gpus for one in living)
    everything = {number for one in living for number in one.allocations}
    return tuple(
        ArrayDraft(
            drafts=tuple(plan.draft for plan in arrays[one.index]),
            parallel=one.parallel,
            nice=NICE_STEP * place,
            after_arrays=one.after,
            after_allocations=tuple(
                sorted(
                    everything
                    if one.waits_for_living
                    else {number for plan in arrays[one.index] for number in plan.waits_for}
                )
            ),
        )
        for place, one in enumerate(share(_demands(arrays), site.max_gpus, in_use))
    )


def _demands(arrays: Sequence[tuple[Plan, ...]]) -> list[Demand]:
    runs_in = {_key(ref): index for index, plans in enumerate(arrays) for one in plans for ref in one.draft.trials}
    return [
        Demand(
            num_gpus=plans[0].draft.num_gpus,
            num_tasks=len(plans),
            work_s=sum(one.draft.expected_s for one in plans),
            parents=frozenset(runs_in[key] for one in plans for key in one.parents if key in runs_in),
        )
        for plans in arrays
    ]
