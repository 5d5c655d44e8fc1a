"""Packing: nothing is lost or doubled, no arrays that can run at once exceed the GPUs, limits and order hold."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egobench.launch.packing import SAFETY, Living, Packing, pack, time_limit_min
from egobench.records.allocation import TrialRef
from egobench.spec.site import Site


def site_of(**fields: Any) -> Site:
    given = {"why": "test", "launcher": "slurm", "device": "cuda", "gpus_per_node": 8, "max_nodes": 2} | fields
    return Site.model_validate(given)


def ref(cell: str, trial: int = 0, parent: str | None = None) -> TrialRef:
    return TrialRef(cell_id=cell, trial=trial, parent=parent)


def packed(trials: Sequence[TrialRef], site: Site, gpus: dict[str, int] | int = 1, **options: Any) -> Packing:
    expected_s = options.pop("expected_s", 600.0)
    return pack(
        trials,
        site,
        lambda one: gpus if isinstance(gpus, int) else gpus[one.cell_id],
        lambda one: expected_s,
        **options,
    )


def keys(packing: Packing) -> list[tuple[str, int]]:
    return [(one.cell_id, one.trial) for array in packing.arrays for draft in array.drafts for one in draft.trials]


def sizes(packing: Packing) -> list[list[int]]:
    return [[len(draft.trials) for draft in array.drafts] for array in packing.arrays]


CELLS = [f"c{index}" for index in range(8)]


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    parents = {
        cell: draw(st.sampled_from([None, *CELLS[:index]])) if draw(st.booleans()) else None
        for index, cell in enumerate(CELLS)
    }
    wanted = draw(st.lists(st.tuples(st.sampled_from(CELLS), st.integers(0, 5)), unique=True, max_size=30))
    living: list[Living] = []
    for number in range(draw(st.integers(0, 2))):
        members = tuple(range(10 * number + 1, 10 * number + 1 + draw(st.integers(1, 4))))
        runs = draw(st.sampled_from([(), (((CELLS[0], number), members[0]),)]))
        living.append(Living(members, draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 3)), runs))
    under_way = {key for one in living for key, _ in one.trials}
    return {
        "trials": [ref(cell, trial, parents[cell]) for cell, trial in wanted if (cell, trial) not in under_way],
        "site": site_of(
            gpus_per_node=4,
            max_gpus=draw(st.sampled_from([None, 4, 8, 9, 16])),
            pack_min=draw(st.sampled_from([5, 30, 60])),
            time_limit_min=draw(st.sampled_from([70, 120, 480])),
            max_array_size=draw(st.sampled_from([2, 1000])),
            max_submit_jobs=draw(st.sampled_from([8, 12, 500])),
            max_trials_per_job=draw(st.sampled_from([None, 2])),
        ),
        "gpus": {cell: draw(st.sampled_from([1, 2, 4, 8])) for cell in CELLS},
        "expected": {cell: float(draw(st.sampled_from([60, 600, 3000]))) for cell in CELLS},
        "living": living,
        "left": draw(st.sampled_from([None, 0.5, 20.0])),
    }


@settings(max_examples=200)
@given(problems())
def test_invariants(problem: dict[str, Any]) -> None:
    site, gpus, expected, trials = problem["site"], problem["gpus"], problem["expected"], problem["trials"]
    packing = pack(
        trials,
        site,
        lambda one: gpus[one.cell_id],
        lambda one: expected[one.cell_id],
        living=problem["living"],
        gpu_hours_left=problem["left"],
    )
    later = [(one.cell_id, one.trial) for one in packing.later]
    assert sorted([*keys(packing), *later]) == sorted((one.cell_id, one.trial) for one in trials)
    assert bool(later) == bool(packing.because)
    drafts = [draft for array in packing.arrays for draft in array.drafts]
    assert len(drafts) + sum(len(one.allocations) for one in problem["living"]) <= max(
        site.max_submit_jobs, sum(len(one.allocations) for one in problem["living"])
    )
    if problem["left"] is not None:
        assert sum(draft.gpu_hours_at_most for draft in drafts) <= problem["left"]
    for array in packing.arrays:
        assert 1 <= len(array.drafts) <= site.max_array_size and 1 <= array.parallel <= len(array.drafts)
        assert len({(draft.num_nodes, draft.gpus_per_node, draft.time_limit_min) for draft in array.drafts}) == 1
        for draft in array.drafts:
            assert {gpus[one.cell_id] for one in draft.trials} == {draft.num_gpus} and draft.gpus_per_node <= 4
            assert draft.expected_s == sum(expected[one.cell_id] for one in draft.trials)
            if len(draft.trials) > 1:
                assert draft.expected_s <= site.pack_min * 60
                assert len(draft.trials) <= (site.max_trials_per_job or 99)
            assert draft.time_limit_min is not None and draft.time_limit_min <= site.time_limit_min
    check_children(packing, problem)
    check_cap(packing, problem)


def ancestors(packing: Packing) -> list[set[int]]:
    found: list[set[int]] = []
    for index, array in enumerate(packing.arrays):
        assert all(one < index for one in array.after_arrays)
        found.append(set(array.after_arrays).union(*(found[one] for one in array.after_arrays)))
    return found


def check_children(packing: Packing, problem: dict[str, Any]) -> None:
    place = {}
    for index, array in enumerate(packing.arrays):
        for number, draft in enumerate(array.drafts):
            for position, one in enumerate(draft.trials):
                place[one.cell_id, one.trial] = (index, number, position)
    before = ancestors(packing)
    runs_in = {key: number for one in problem["living"] for key, number in one.trials}
    asked = {(one.cell_id, one.trial) for one in problem["trials"]}
    for array in packing.arrays:
        for one in (one for draft in array.drafts for one in draft.trials if one.parent is not None):
            mine, above = place[one.cell_id, one.trial], (one.parent, one.trial)
            if above in asked:
                theirs = place[above]  # a parent that is left for later leaves its children too
                together = theirs[:2] == mine[:2] and theirs[2] < mine[2]
                assert together or theirs[0] in before[mine[0]]
            elif above in runs_in:
                line = [packing.arrays[index] for index in (*before[mine[0]], mine[0])]
                assert any(runs_in[above] in earlier.after_allocations for earlier in line)


def check_cap(packing: Packing, problem: dict[str, Any]) -> None:
    """No antichain of the arrays, living ones included, may use more than the cap."""
    if problem["site"].max_gpus is None:
        return
    before = ancestors(packing)
    living = [min(one.parallel, len(one.allocations)) * one.num_gpus for one in problem["living"]]
    everything = {number for one in problem["living"] for number in one.allocations}
    use = [array.parallel * array.drafts[0].num_gpus for array in packing.arrays]
    waits = [
        everything
        <= set(array.after_allocations).union(*(packing.arrays[one].after_allocations for one in before[index]))
        for index, array in enumerate(packing.arrays)
    ]
    for count in range(1, min(len(use), 4) + 1):
        for some in itertools.combinations(range(len(use)), count):
            if any(one in before[other] for one in some for other in some):
                continue
            beside = 0 if any(waits[one] for one in some) else sum(living)
            assert sum(use[one] for one in some) + beside <= problem["site"].max_gpus


def test_the_given_order_and_baselines_first() -> None:
    site = site_of(pack_min=20)
    trials = [ref(f"c{index}", trial) for trial in range(2) for index in range(4)]
    assert keys(packed(trials, site)) == [(one.cell_id, one.trial) for one in trials]
    packing = packed(trials, site, {"c0": 1, "c1": 2, "c2": 2, "c3": 4}, first={"c3"})
    assert [array.drafts[0].trials[0].cell_id for array in packing.arrays] == ["c3", "c0", "c1"]
    assert [array.nice for array in packing.arrays] == [0, 10, 20]


def test_allocations_are_filled_evenly() -> None:
    assert sizes(packed([ref("c", trial) for trial in range(8)], site_of(time_limit_min=480))) == [[4, 4]]
    assert sizes(packed([ref("c", trial) for trial in range(13)], site_of(time_limit_min=480))) == [[4, 5, 4]]
    assert sizes(packed([ref("c", trial) for trial in range(5)], site_of(max_trials_per_job=1))) == [[1] * 5]


def test_time_limits_leave_room_and_have_few_steps() -> None:
    site = site_of(time_limit_min=480, trial_time_limit_s=1800.0)
    assert time_limit_min(3600, 6, site) == 180  # 60 min * 1.5 + 30 min + start-up and warning
    assert time_limit_min(60, 1, site) == 45  # a lone trial needs no more than its own limit
    assert time_limit_min(36000, 6, site) == 240  # nor do six
    assert time_limit_min(36000, 60, site) == 480
    assert len({time_limit_min(float(seconds), 50, site) for seconds in range(600, 14400, 60)}) <= 8
    for seconds in range(60, 3600, 60):
        assert time_limit_min(seconds, 50, site) * 60 >= min(480 * 60, seconds * SAFETY + 1800)


def test_arrays_share_the_gpus_by_work() -> None:
    gpus = {"small": 1, "large": 4}
    trials = [ref("small", trial) for trial in range(30)] + [ref("large", trial) for trial in range(10)]
    site = site_of(max_gpus=12, max_trials_per_job=1)
    by_gpus = {array.drafts[0].num_gpus: array for array in packed(trials, site, gpus).arrays}
    assert by_gpus[1].parallel == 4 and by_gpus[4].parallel == 2
    assert by_gpus[1].after_arrays == by_gpus[4].after_arrays == ()


def test_what_does_not_fit_beside_waits() -> None:
    gpus = {"a": 8, "b": 4, "c": 4}
    arrays = packed([ref("a"), ref("b"), ref("c")], site_of(max_gpus=8, pack_min=10), gpus).arrays
    assert [(array.drafts[0].num_gpus, array.parallel, array.after_arrays) for array in arrays] == [
        (8, 1, ()),
        (4, 2, (0,)),
    ]


def test_living_arrays_count() -> None:
    living = [Living((7, 8, 9), num_gpus=4, parallel=1)]
    beside, *_ = packed([ref("c", trial) for trial in range(9)], site_of(max_gpus=8), 2, living=living).arrays
    assert beside.parallel == 2 and beside.after_allocations == ()
    (behind,) = packed([ref("c")], site_of(max_gpus=8), 8, living=living).arrays
    assert behind.after_allocations == (7, 8, 9)


def test_children_follow_in_the_same_allocation_or_behind() -> None:
    trials = [ref("child", 0, "base"), ref("base"), ref("grandchild", 0, "child")]
    (array,) = packed(trials, site_of(time_limit_min=480), 2).arrays
    assert [one.cell_id for one in array.drafts[0].trials] == ["base", "child", "grandchild"]
    arrays = packed(trials, site_of(max_gpus=8), {"base": 4, "child": 1, "grandchild": 1}).arrays
    assert [array.drafts[0].num_gpus for array in arrays] == [4, 1]
    assert arrays[1].after_arrays == (0,)
    living = [Living((3, 4), 4, 2, ((("base", 0), 4),))]
    waiting, free = packed([ref("child", 0, "base"), ref("x")], site_of(), 1, living=living).arrays
    assert {waiting.after_allocations, free.after_allocations} == {(4,), ()}


def test_a_full_queue_and_a_spent_budget() -> None:
    trials = [ref(f"c{index}") for index in range(6)]
    site = site_of(max_trials_per_job=1, max_submit_jobs=5, trial_time_limit_s=600.0, expected_trial_min=5.0)
    full = packed(trials, site, living=[Living((1,), 1, 1)])
    assert len(keys(full)) == 4 and "max_submit_jobs" in full.because and full.later == tuple(trials[4:])
    (array,) = packed(trials, site, expected_s=300.0, gpu_hours_left=1.0).arrays
    assert array.drafts[0].time_limit_min == 15 and len(array.drafts) == 4
    poor = packed(trials, site, 4, expected_s=300.0, gpu_hours_left=0.9)
    assert poor.arrays == () and poor.because == "the budget: 0.9 GPU-hours were left, and jobs are counted in full"
    assert poor.is_budgeted and not full.is_budgeted


def test_a_trial_above_the_cap_and_its_children_are_left_with_a_reason() -> None:
    packing = packed(
        [ref("big"), ref("child", 0, "big"), ref("x")], site_of(max_gpus=4), {"big": 8, "child": 1, "x": 1}
    )
    assert keys(packing) == [("x", 0)] and "max_gpus (4)" in packing.because


@pytest.mark.parametrize("max_gpus", [None, 16])
def test_five_thousand_trials(max_gpus: int | None) -> None:
    trials = [ref(f"c{index}", trial) for trial in range(10) for index in range(500)]
    gpus = {f"c{index}": [1, 2, 4, 8, 16][index % 5] for index in range(500)}
    site = site_of(max_gpus=max_gpus, max_submit_jobs=5000, time_limit_min=480, max_array_size=100)
    started = time.process_time()
    packing = packed(trials, site, gpus, first={"c0"})
    assert time.process_time() - started < 1.0
    assert len(keys(packing)) == 5000
