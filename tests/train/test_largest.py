"""`micro_batch_size: max` finds the largest micro-batch that fits, and remembers it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_trials import make_trial, run_here, run_ranks, setup_here

from egobench.probes.host_memory import available_bytes, cgroup_room
from egobench.records.measures import StepRecord
from egobench.records.store import TrialPaths, read_lines
from egobench.train import dry_run, largest
from egobench.train.largest import CLOSE_ENOUGH, Attempt, Learned, find_largest, search
from egobench.train.setup import Work

MIB = 2**20


def memory(taken: Callable[[int], float], room: float, tried: list[int] | None = None, raises: bool = False) -> Any:
    """Return an attempt on a device on which sizes take so much."""

    def attempt(size: int) -> Attempt | None:
        if tried is not None:
            tried.append(size)
        if raises and taken(size) > room:
            return None
        return Attempt(size, int(taken(size)), int(room))

    return attempt


def best(taken: Callable[[int], float], room: float, limit: int) -> int:
    return max((size for size in range(1, limit + 1) if int(taken(size)) <= int(room)), default=0)


@given(
    flat=st.integers(0, 2000), constant=st.integers(0, 500), per_sample=st.integers(1, 300),
    quadratic=st.floats(0, 3), room=st.integers(1, 20000), limit=st.integers(1, 3000), raises=st.booleans(),
)  # fmt: skip
def test_the_search_comes_close_whatever_sizes_take(
    flat: int, constant: int, per_sample: int, quadratic: float, room: int, limit: int, raises: bool
) -> None:
    def taken(size: int) -> float:
        # Below some size something else than activations makes the peak.
        return MIB * max(flat, constant + per_sample * size + quadratic * size**2)

    tried: list[int] = []
    found = search(memory(taken, MIB * room, tried, raises), limit, Learned())
    true = best(taken, MIB * room, limit)
    assert found.fits <= true <= found.fits + 2 * (found.fits // CLOSE_ENOUGH)
    assert found.fits == 0 or found.fits in tried
    assert len(tried) <= 30 and len(set(tried)) == len(tried)
    if found.fails is not None:
        assert found.fits < found.fails and found.fails in tried


@given(
    constant=st.integers(0, 500), per_sample=st.integers(1, 300), room=st.integers(1, 20000), limit=st.integers(1, 3000)
)
def test_where_an_error_ends_the_trial_nothing_is_tried_that_does_not_fit(
    constant: int, per_sample: int, room: int, limit: int
) -> None:
    def taken(size: int) -> int:
        return MIB * (constant + per_sample * size)

    tried: list[int] = []
    found = search(memory(taken, MIB * room, tried), limit, Learned(), mode="trust")
    true = best(taken, MIB * room, limit)
    assert max(tried) == max(1, found.fits) <= max(1, true)
    # It ends where one sample more would not fit, if it took what those that fit take on average.
    if 0 < found.fits < limit - found.fits // CLOSE_ENOUGH:
        left = MIB * room - taken(found.fits)
        assert left < (1 + found.fits // CLOSE_ENOUGH) * taken(found.fits) / found.fits


@pytest.mark.parametrize(("per_sample", "expected"), [(1000, 24), (24000, 1), (10, 500), (30000, 0)])
def test_the_search_is_exact_where_sizes_take_in_proportion(per_sample: int, expected: int) -> None:
    tried: list[int] = []
    assert search(memory(lambda size: per_sample * size, 24000, tried), 500, Learned()).fits == expected
    assert len(tried) <= 6


def test_what_is_known_is_only_confirmed() -> None:
    def taken(size: int) -> int:
        return MIB * (50 + 10 * size)

    tried: list[int] = []
    room = MIB * 1000
    assert search(memory(taken, room, tried), 500, Learned(fits=90), start=90).fits == 90
    assert tried == [90]
    # Meanwhile there is less room.
    tried.clear()
    assert 62 <= search(memory(taken, 0.7 * room, tried), 500, Learned(fits=90), start=90).fits <= 65
    assert tried[0] == 90
    # A bound from an attempt that the allocator ended is kept, and not tried again.
    tried.clear()
    found = search(memory(taken, room, tried), 500, Learned(fails=40))
    assert 37 <= found.fits < 40 == found.fails and max(tried) < 40


def test_on_a_cpu_the_last_size_is_foreseen() -> None:
    def taken(size: int) -> int:
        return MIB * (40 + 2 * size)

    tried: list[int] = []
    found = search(memory(taken, MIB * 20000, tried), 100000, Learned(), mode="foresee")
    assert found.fits > 4 * max(tried)  # not even near the size that would have the process killed
    assert 0.9 * 9980 < found.fits <= 9980
    # The same answer as last time, as long as it still fits.
    for room in (18000, 20000, 50000):
        assert search(memory(taken, MIB * room), 100000, Learned(fits=9000), mode="foresee").fits == 9000
    assert search(memory(taken, MIB * 2000), 100000, Learned(fits=9000), mode="foresee").fits < 1000


def maximal(folder: Path, **changes: Any) -> Any:
    return make_trial(folder, **({"axes": {"micro_batch_size": "max"}} | changes))


def give(monkeypatch: pytest.MonkeyPatch, room_bytes: int) -> list[int]:
    """Let a rank have so much memory, and note the sizes that are tried."""
    monkeypatch.setattr(largest, "available_bytes", lambda: int(room_bytes / largest.CPU_SHARE))
    sizes: list[int] = []
    original = largest._Tries.__call__

    def attempt(self: Any, size: int) -> Attempt | None:
        sizes.append(size)
        return original(self, size)

    monkeypatch.setattr(largest._Tries, "__call__", attempt)
    return sizes


@pytest.mark.slow
def test_without_want_the_largest_is_all_there_is(tmp_path: Path) -> None:
    summary, steps = run_here(
        maximal(tmp_path, axes={"micro_batch_size": "max", "num_accumulation_steps": 2}), tmp_path
    )
    assert summary.micro_batch_size == 16  # 32 samples, two micro-steps
    assert [step.num_samples for step in steps] == [32] * 4


def test_a_trial_with_a_number_says_nothing(tmp_path: Path) -> None:
    assert run_here(make_trial(tmp_path), tmp_path)[0].micro_batch_size is None


@pytest.mark.slow
def test_what_fits_is_used_remembered_and_confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"num_train": 512}
    sizes = give(monkeypatch, 300 * MIB)
    summary, steps = run_here(maximal(tmp_path / "a", data=data), tmp_path / "a")
    size = summary.micro_batch_size
    assert size is not None and 8 < size < 512
    assert {step.num_samples for step in steps} == {size}
    (path,) = (tmp_path / "a/cache/micro_batch").iterdir()
    learned = json.loads(path.read_text())
    assert learned["fits"] == size and learned["about"]["axes"]["padding"] == "dynamic"
    assert "micro_batch_size" not in learned["about"]["axes"]

    # A repeat of the cell has another seed, and takes the same size although there is a little more room.
    give(monkeypatch, 330 * MIB)
    again = maximal(tmp_path / "a", data=data, seed=1)
    work = setup_here(again)
    assert work.feed.micro_batch_size == size
    # Another cell does not.
    other = setup_here(maximal(tmp_path / "a", data=data, axes={"micro_batch_size": "max", "checkpointing": "full"}))
    assert other.feed.micro_batch_size > size
    assert len(list((tmp_path / "a/cache/micro_batch").iterdir())) == 2
    assert sizes


def test_the_search_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make_trial(tmp_path / "b", axes={"micro_batch_size": 4})
    expected = [(step.loss, step.grad_norm) for step in run_here(trial, tmp_path / "b")[1]]
    monkeypatch.setattr("egobench.train.setup.find_largest", lambda work: min(4, find_largest(work)))
    summary, steps = run_here(maximal(tmp_path / "a"), tmp_path / "a")
    assert summary.micro_batch_size == 4
    assert [(step.loss, step.grad_norm) for step in steps] == expected


@pytest.mark.slow
def test_more_than_there_is_is_found_out_by_the_allocator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    original = dry_run.run

    def run(work: Work, dealt: Any, *, is_last: bool) -> None:
        passes.append(dealt.batch.num_samples)
        if dealt.batch.num_samples > 11:
            torch.empty(2**60, dtype=torch.uint8)
        original(work, dealt, is_last=is_last)

    monkeypatch.setattr(dry_run, "run", run)
    trial = maximal(tmp_path)
    work = setup_here(trial)
    assert work.feed.micro_batch_size == 11 and max(passes) > 11
    assert all(parameter.grad is None for parameter in work.model.parameters())
    (path,) = (tmp_path / "cache/micro_batch").iterdir()
    assert json.loads(path.read_text())["fails"] == 12

    monkeypatch.setattr(dry_run, "run", lambda work, dealt, is_last: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="you tried to allocate"):
        setup_here(trial)


def test_where_ranks_cannot_recover_the_error_is_told_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = dry_run.run

    def run(work: Work, dealt: Any, *, is_last: bool) -> None:
        if dealt.batch.num_samples > 11:
            torch.empty(2**60, dtype=torch.uint8)
        original(work, dealt, is_last=is_last)

    monkeypatch.setattr(dry_run, "run", run)
    monkeypatch.setattr(largest, "RECOVERABLE", ())
    with pytest.raises(RuntimeError, match=r"micro_batch_size: max: trying 16 samples: .*you tried to allocate"):
        setup_here(maximal(tmp_path))
    # The next attempt of the trial knows.
    assert setup_here(maximal(tmp_path)).feed.micro_batch_size == 4


def test_ranks_agree(tmp_path: Path) -> None:
    axes = {"micro_batch_size": "max", "strategy": "ddp", "gpus": 2, "padding": "bucketed"}
    said = run_ranks(make_trial(tmp_path, axes=axes), tmp_path, timeout_s=150)
    assert [summary.micro_batch_size for summary, _ in said] == [16, 16], said
    lines = [read_lines(TrialPaths(tmp_path).rank_steps(rank), StepRecord) for rank in range(2)]
    assert all(step.num_samples == 16 for rank in lines for step in rank)
    assert [step.grad_norm for step in lines[0]] == [step.grad_norm for step in lines[1]]
    assert len(list((tmp_path / "cache/micro_batch").iterdir())) == 1


def test_room_is_what_machine_and_cgroups_leave(tmp_path: Path) -> None:
    job = tmp_path / "slurm/job_7"
    (job / "step_0").mkdir(parents=True)
    (job / "step_0/memory.max").write_text("max\n")
    (job / "memory.max").write_text("1000\n")
    (job / "memory.current").write_text("900\n")
    (job / "memory.stat").write_text("anon 500\ninactive_file 250\nactive_file 3\n")
    (tmp_path / "slurm/memory.max").write_text("5000\n")
    (tmp_path / "slurm/memory.current").write_text("1000\n")
    assert sorted(cgroup_room("0::/slurm/job_7/step_0\n", tmp_path)) == [350, 4000]
    old = tmp_path / "memory/job"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("700\n")
    (old / "memory.usage_in_bytes").write_text("800\n")
    (old / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 30\n")
    assert list(cgroup_room("12:cpu:/job\n4:memory:/job\n", tmp_path)) == [0]
    assert 0 < available_bytes() <= 2**42
