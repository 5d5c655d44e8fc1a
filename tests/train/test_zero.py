"""DeepSpeed's ZeRO in real gloo ranks is the training of one rank, spread."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from sharded_trials import (
    Axes,
    Ran,
    check_saved,
    compare,
    largest_difference,
    run_alone,
    run_cases,
    save_and_load,
    set_up,
    tied_checkpoint,
    update,
)
from training_trials import NOISE, in_ranks, one_rank

from egobench.errors import EnvironmentProblem
from egobench.train.optimizers import set_learning_rate
from egobench.train.rank import Rank
from egobench.train.strategies.zero import import_deepspeed

STAGES = ("zero1", "zero2", "zero3")
BELOW_ALL: Axes = {"method": "dora", "lora_targets": "all-linear", "projector": "frozen", "checkpointing": "selective"}
"""What goes into the first adapters has no gradient."""
QUICK: dict[str, Axes] = {
    "zero1": {"strategy": "zero1"},
    "zero2_accumulated": {"strategy": "zero2", "num_accumulation_steps": 2},
    "zero2_offloaded": {"strategy": "zero2", "offload": "optimizer"},
    "zero2_bf16": {"strategy": "zero2", "precision": "bf16"},
    "zero3": {"strategy": "zero3"},
    "zero3_lora": {"strategy": "zero3", "method": "lora"},
    "zero3_dora": {"strategy": "zero3", **BELOW_ALL},
}
MORE: dict[str, Axes] = {
    "zero1_accumulated": {"strategy": "zero1", "num_accumulation_steps": 2},
    "zero1_bf16": {"strategy": "zero1", "precision": "bf16", "num_accumulation_steps": 2},
    "zero1_lora": {"strategy": "zero1", "method": "lora"},
    "zero2_bf16": {"strategy": "zero2", "precision": "bf16", "num_accumulation_steps": 2},
    "zero2_lora": {"strategy": "zero2", "method": "lora"},
    "zero3_accumulated": {"strategy": "zero3", "num_accumulation_steps": 2},
    "zero3_offloaded": {"strategy": "zero3", "offload": "parameters"},
    "zero3_bf16": {"strategy": "zero3", "precision": "bf16"},
}
ALONE: dict[str, Axes] = {
    "plain": {},
    "lora": {"method": "lora"},
    "dora": BELOW_ALL,
    "bf16": {"precision": "bf16"},
    "bf16_pure": {"precision": "bf16_pure"},
}
SAME = {"loss": 1e-4, "grad_norm": 1e-4, "weights": NOISE}
"""fp32, four steps of AdamW at 1e-3; stage 3 multiplies matrices by its own function, adding up in another order."""


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Axes:
    return tied_checkpoint(tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="module")
def alone(tied: Axes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    cases = {**ALONE, "tied": tied}
    return {name: run_alone(axes, tmp_path_factory.mktemp(f"alone_{name}")) for name, axes in cases.items()}


@pytest.fixture(scope="module")
def quick(tied: Axes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    cases = {**QUICK, "zero3_tied": {"strategy": "zero3", **tied}}
    return run_cases(cases, 2, tmp_path_factory.mktemp("quick"))


def check(cases: dict[str, Ran], alone: dict[str, Ran]) -> None:
    for name, ran in cases.items():
        if "bf16" in name:
            check_bf16(ran, alone)
            continue
        kind = name.partition("_")[2]
        apart = compare(alone[kind if kind in alone else "plain"], ran)
        assert all(apart[what] <= limit for what, limit in SAME.items()), (name, apart)
        if "zero3" not in name:
            assert apart["weights"] <= 1e-5, (name, apart)


def check_bf16(ran: Ran, alone: dict[str, Ran]) -> None:
    assert ran.steps[0].loss == pytest.approx(alone["bf16"].steps[0].loss, rel=0.05)
    # 16-bit weights without autocast.
    assert ran.steps[0].loss == pytest.approx(alone["bf16_pure"].steps[0].loss, rel=0.05)
    assert {tensor.dtype for tensor in ran.weights.values()} == {torch.float32}
    # Four steps of 1e-3 either way, from weights that were rounded first (to 8 bits, and none is larger than 2).
    assert largest_difference(alone["bf16"].weights, ran.weights) < 2e-2


@pytest.mark.slow
def test_the_same_training_as_one_rank(quick: dict[str, Ran], alone: dict[str, Ran]) -> None:
    check(quick, alone)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_stage_in_every_way(alone: dict[str, Ran], tmp_path: Path) -> None:
    check(run_cases(MORE, 2, tmp_path), alone)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_ranks(alone: dict[str, Ran], tmp_path: Path) -> None:
    check(run_cases({name: {"strategy": name} for name in STAGES}, 4, tmp_path), alone)


@pytest.mark.slow
def test_the_same_answers_although_ranks_have_unequal_numbers_of_batches(
    quick: dict[str, Ran], alone: dict[str, Ran]
) -> None:
    for name in ("zero1", "zero3"):
        for when in ("before", "after"):
            one, other = getattr(alone["plain"].summary, when), getattr(quick[name].summary, when)
            assert other.num_questions == one.num_questions
            assert (other.em, other.f1, other.generated_tokens) == (one.em, one.f1, one.generated_tokens)


@pytest.mark.slow
def test_exposed_communication_is_told_apart(quick: dict[str, Ran]) -> None:
    for ran in quick.values():
        for record in (record for lines in ran.per_rank for record in lines):
            parts = record.data_s + record.forward_s + record.backward_s + record.communication_s + record.optimizer_s
            assert parts == pytest.approx(record.step_time_s, rel=0.02)
            assert 0 < record.communication_s < record.step_time_s


@pytest.fixture(scope="module")
def looked_into(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found when it looked into trials of its own."""
    said = in_ranks(2, tmp_path_factory.mktemp("looked"), _look, timeout_s=500)
    assert all(isinstance(one, dict) for one in said), said
    return said


def _look(folder: Path, rank: Rank) -> dict[str, Any]:
    # A compiler that fails, and no folder for what it would have made: nothing is compiled.
    os.environ["CXX"] = "/bin/false"
    os.environ.pop("TORCH_EXTENSIONS_DIR", None)
    held = {name: _held(folder / name, rank, {"strategy": name}) for name in STAGES}
    saved = {}
    for name in ("zero1", "zero3"):
        (folder / f"saved_{name}").mkdir(exist_ok=True)
        saved[name] = save_and_load({"strategy": name}, folder / f"saved_{name}", rank)
    return {"held": held, "saved": saved, "forgot": _forget(folder / "forgot", rank)}


def test_each_stage_spreads_what_it_says(looked_into: list[dict[str, Any]]) -> None:
    for one in (one["held"] for one in looked_into):
        total = one["zero1"]["total"]
        for name in STAGES:
            assert one[name]["total"] == total
            assert one[name]["states"] == pytest.approx(1.5 * total, rel=0.02)  # half of weights and two moments
            assert one[name]["gradients"] == pytest.approx(0.5 * total, rel=0.05)
            # Stage 3 keeps vectors whole as well.
            expected = 0.5 if name == "zero3" else 1.0
            assert one[name]["parameters"] == pytest.approx(expected * total, rel=0.04), name
        # Between micro-steps; a parameter on the border of two shares is summed by both ranks.
        assert one["zero2"]["gradients_so_far"] == pytest.approx(0.5 * total, rel=0.2)
        assert one["zero1"]["gradients_so_far"] == total
        assert 0 < max(one["zero3"]["whole"]) < 10 * 128 < min(one["zero3"]["cut"])


def _held(folder: Path, rank: Rank, axes: Axes) -> dict[str, Any]:
    work = set_up(folder, rank, axes)
    strategy, engine = work.strategy, cast("Any", work.model)
    named = list(engine.module.parameters())
    dealt = work.feed.next()
    update(work, dealt)
    with strategy.accumulate(is_last=False):
        strategy.backward(work.loss.compute(work.model, dealt.batch, dealt.pixel_values))
    between = _own_bytes(strategy.held_tensors().gradients)
    with strategy.accumulate(is_last=True):
        strategy.backward(work.loss.compute(work.model, dealt.batch, dealt.pixel_values))
    held = strategy.held_tensors()
    numbers = [getattr(parameter, "ds_numel", parameter.numel()) for parameter in named]
    is_whole = [getattr(parameter, "ds_persist", True) for parameter in named]
    return {
        "total": 4 * sum(numbers),
        "parameters": _own_bytes(held.parameters),
        "gradients": _own_bytes(held.gradients),
        "gradients_so_far": between,
        "states": _own_bytes(held.optimizer),
        "whole": [number for number, whole in zip(numbers, is_whole, strict=True) if whole],
        "cut": [number for number, whole in zip(numbers, is_whole, strict=True) if not whole],
    }


def _own_bytes(tensors: list[torch.Tensor]) -> int:
    """Return the bytes of the memory that tensors are views of."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def test_save_and_load_go_on_where_they_were(looked_into: list[dict[str, Any]]) -> None:
    for name in ("zero1", "zero3"):
        check_saved([one["saved"][name] for one in looked_into])


def test_forgotten_gradients_leave_no_trace(looked_into: list[dict[str, Any]]) -> None:
    for name, (never, forgotten) in looked_into[0]["forgot"].items():
        assert largest_difference(never, forgotten) == 0, name


def _forget(folder: Path, rank: Rank) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    cases: dict[str, Axes] = {
        "zero2": {"strategy": "zero2"},
        "zero2_offloaded": {"strategy": "zero2", "offload": "optimizer", "num_accumulation_steps": 2},
        "zero3": {"strategy": "zero3"},
        "zero1_bf16": {"strategy": "zero1", "precision": "bf16", "num_accumulation_steps": 2},
    }
    return {
        name: [_updated(folder / f"{name}{forgets}", rank, axes, forgets=forgets) for forgets in (False, True)]
        for name, axes in cases.items()
    }


def _updated(folder: Path, rank: Rank, axes: Axes, *, forgets: bool) -> dict[str, torch.Tensor]:
    """Return the weights after one update; before it, maybe, come two micro-steps that are forgotten."""
    work = set_up(folder, rank, axes)
    first, second = work.feed.next(), work.feed.next()
    if forgets:
        for is_last in (False, True):
            with work.strategy.accumulate(is_last=is_last):
                work.strategy.backward(work.loss.compute(work.model, second.batch, second.pixel_values))
        work.strategy.forget()
    for is_last in (False, True):
        with work.strategy.accumulate(is_last=is_last):
            work.strategy.backward(work.loss.compute(work.model, first.batch, first.pixel_values) / 100)
    set_learning_rate(work.optimizer, 1e-3)
    work.strategy.update(1.0)
    return work.strategy.weights()


def test_a_missing_deepspeed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(EnvironmentProblem, match=r"pip install 'egobench\[deepspeed\]'"):
        import_deepspeed(one_rank())
