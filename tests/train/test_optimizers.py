"""Every optimizer is AdamW within what its format costs, and goes on after a restart as if nothing had been."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_trials import make_trial, run_here, run_ranks, setup_here

from egobench.errors import EnvironmentProblem
from egobench.records.measures import StepRecord
from egobench.records.store import TrialPaths, read_lines
from egobench.train.optimizers import set_learning_rate
from egobench.train.setup import Work

BITSANDBYTES = ("adamw_8bit", "adamw_8bit_paged")
IN_8_BIT = (*BITSANDBYTES, "adamw_8bit_torchao")
EVERY = ("adamw", "adamw_fused", *IN_8_BIT)

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Ten steps of fine-tuning in a new domain, from trained weights."""
    losses = {}
    for name in EVERY:
        folder = tmp_path_factory.mktemp(name)
        trial = make_trial(
            folder, axes={"optimizer": name}, model={"name": "egotiny"}, data={"domain": "workshop"},
            recipe={"num_steps": 10, "learning_rate": 1e-3, "weight_decay": 0.1},
        )  # fmt: skip
        losses[name] = [step.loss for step in run_here(trial, folder)[1]]
    return losses


# Measured: 3e-7, 1.4e-3, 1.4e-3 and 8.2e-2.
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("adamw_fused", 1e-5), ("adamw_8bit", 5e-3), ("adamw_8bit_paged", 5e-3), ("adamw_8bit_torchao", 0.12)],
)
def test_losses_follow_those_of_adamw(traces: dict[str, list[float]], name: str, tolerance: float) -> None:
    assert len(traces[name]) == 10
    assert traces[name] == pytest.approx(traces["adamw"], rel=tolerance)
    assert (traces[name] == traces["adamw"]) is False


def stepped(work: Work, number: int = 1) -> list[float]:
    losses = []
    for _ in range(number):
        dealt = work.feed.next()
        loss = work.loss.compute(work.model, dealt.batch, dealt.pixel_values) / dealt.global_supervised_tokens
        set_learning_rate(work.optimizer, 1e-3)
        work.strategy.backward(loss)
        work.strategy.update(1.0)
        losses.append(loss.item())
    return losses


def moments(state: dict[str, Any]) -> list[Any]:
    return [state[key] for key in ("state1", "state2", "exp_avg", "exp_avg_sq") if key in state]


def is_8_bit(moment: Any) -> bool:
    return bool(getattr(moment, "codes", moment).dtype == torch.uint8)


def stored_bytes(state: dict[str, Any]) -> int:
    tensors = [value for key, value in state.items() if isinstance(value, torch.Tensor) and not key.startswith("qmap")]
    parts = [part for value in tensors for part in ([value.codes, value.scale] if hasattr(value, "codes") else [value])]
    return sum(part.untyped_storage().nbytes() for part in parts)


@pytest.mark.parametrize("name", IN_8_BIT)
def test_moments_are_in_8_bits(tmp_path: Path, name: str) -> None:
    work = setup_here(make_trial(tmp_path, axes={"optimizer": name}))
    stepped(work)
    assert len(work.optimizer.state) == len(list(work.model.parameters()))
    embeddings = {id(module.weight) for module in work.model.modules() if isinstance(module, nn.Embedding)}
    for parameter, state in work.optimizer.state.items():
        is_exempt = id(parameter) in embeddings if name in BITSANDBYTES else parameter.numel() % 256 != 0
        is_kept = parameter.numel() < 4096 or is_exempt
        assert len(moments(state)) == 2
        assert all(is_8_bit(moment) != is_kept for moment in moments(state))
        # A block of 256 numbers has a scale of 4 bytes, and Adam two moments.
        least = 8 * parameter.numel() if is_kept else 2 * (parameter.numel() + 4 * -(-parameter.numel() // 256))
        assert least <= stored_bytes(state) <= least + 4


def test_adamw_takes_four_times_the_bytes(tmp_path: Path) -> None:
    held = {}
    for name in ("adamw", *IN_8_BIT):
        work = setup_here(make_trial(tmp_path, axes={"optimizer": name}))
        stepped(work)
        held[name] = sum(stored_bytes(state) for state in work.optimizer.state.values())
    assert held["adamw"] == pytest.approx(8 * work.num_parameters, rel=0.001)
    assert held["adamw_8bit_torchao"] < 0.30 * held["adamw"]
    assert held["adamw_8bit"] == held["adamw_8bit_paged"] < 0.36 * held["adamw"]  # embeddings keep 32 bits


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_optimizer_goes_on_where_it_was(tmp_path: Path, name: str) -> None:
    def ready() -> Work:
        return setup_here(make_trial(tmp_path, axes={"optimizer": name}, recipe={"num_steps": 6}))

    whole, folder = ready(), tmp_path / "saved"
    stepped(whole, 3)
    whole.strategy.save(folder)
    expected = stepped(whole, 3)
    fresh = ready()
    fresh.strategy.load(folder)
    for _ in range(3):
        fresh.feed.next()
    assert stepped(fresh, 3) == expected


@pytest.mark.parametrize("name", EVERY)
def test_the_learning_rate_is_obeyed(tmp_path: Path, name: str) -> None:
    work = setup_here(make_trial(tmp_path, axes={"optimizer": name}))
    weights = [parameter.detach().clone() for parameter in work.model.parameters()]

    def moved() -> float:
        pairs = zip(work.model.parameters(), weights, strict=True)
        return max((now - then).abs().max().item() for now, then in pairs)

    for rate in (0.0, 1e-3, 1e-2):
        for parameter in work.model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-2)
        set_learning_rate(work.optimizer, rate)
        before = moved()
        work.optimizer.step()
        assert moved() - before == pytest.approx(rate, rel=0.02, abs=1e-8)


def test_one_model_s_embeddings_are_not_another_s(tmp_path: Path) -> None:
    from bitsandbytes.optim import GlobalOptimManager

    stepped(setup_here(make_trial(tmp_path, axes={"optimizer": "adamw_8bit"})))
    shared = GlobalOptimManager.get_instance()
    assert (shared.pid2config, shared.index2config, shared.module_weight_config_triple) == ({}, {}, [])


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("adamw_8bit", "bitsandbytes", "bitsandbytes"), ("adamw_8bit_torchao", "torchao.optim", "torchao")],
)
def test_a_missing_package_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentProblem, match=rf"pip install 'egobench\[{package}\]'"):
        setup_here(make_trial(tmp_path, axes={"optimizer": name}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        ("ddp", "adamw_8bit"),
        ("zero2", "adamw_8bit"),
        ("zero3", "adamw_8bit_torchao"),
        ("fsdp", "adamw_8bit_torchao"),
        ("fsdp", "adamw_fused"),
    ],
)
def test_two_ranks_train_as_one(tmp_path: Path, strategy: str, name: str) -> None:
    traces = []
    for gpus, kind, optimizer in ((1, "single", "adamw"), (2, strategy, name)):
        folder = tmp_path / kind
        axes = {"gpus": gpus, "micro_batch_size": 4 // gpus, "strategy": kind, "optimizer": optimizer}
        trial = make_trial(folder, axes=axes, model={"name": "egotiny"})
        said, _ = run_ranks(trial, folder, timeout_s=150)[0]
        assert not isinstance(said, BaseException), said
        traces.append([line.grad_norm for line in read_lines(TrialPaths(folder).rank_steps(0), StepRecord)])
    assert len(traces[0]) == 4
    assert traces[1] == pytest.approx(traces[0], rel=1e-4 if name == "adamw_fused" else 0.02)
