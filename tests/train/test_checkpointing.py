"""Recomputation changes no gradient, recomputes what it promises, and leaves fewer bytes behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_trials import make_trial, run_here, run_ranks, setup_here
from transformers.models.internvl.modeling_internvl import InternVLVisionMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from egobench.records.measures import StepRecord
from egobench.records.store import TrialPaths, read_lines
from egobench.train import checkpointing

VALUES = ("none", "every_4", "every_2", "selective", "full")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
ATTENTION = ("aten::_scaled_dot_product_flash_attention_for_cpu",)


class Operators(TorchDispatchMode):
    """Counts operators, and weighs what they made that is still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.made: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.counts[func.name()] += 1
        stores = (leaf.untyped_storage() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
        self.made += [(StorageWeakRef(store), store.nbytes()) for store in stores]
        return out

    def alive_bytes(self) -> int:
        return sum({ref: size for ref, size in self.made if not ref.expired()}.values())

    def number(self, names: tuple[str, ...]) -> int:
        return sum(self.counts[name] for name in names)


class Ran:
    """The forward and backward pass of one batch."""

    def __init__(self, folder: Path, **axes: Any) -> None:
        work = setup_here(make_trial(folder, axes=axes))
        dealt = work.feed.next()
        self.calls: Counter[type[nn.Module]] = Counter()
        # Before the forward: recomputation stops as soon as it has what the backward pass needs.
        hook = nn.modules.module.register_module_forward_pre_hook(self._count)
        try:
            with work.precision.compute(work.rank.device), Operators() as forward:
                loss = work.loss.compute(work.model, dealt.batch, dealt.pixel_values) / dealt.global_supervised_tokens
            self.kept_bytes = forward.alive_bytes()
            with Operators() as self.backward:
                loss.backward()
        finally:
            hook.remove()
        self.loss = loss.item()
        self.gradients = {n: p.grad for n, p in work.model.named_parameters() if p.grad is not None}

    def _count(self, module: nn.Module, _: Any) -> None:
        self.calls[type(module)] += 1

    def blocks(self) -> tuple[int, int]:
        """Return how often blocks of the tower, and of the LLM, have run."""
        return self.calls[InternVLVisionMLP], self.calls[Qwen2MLP]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    return {name: Ran(tmp_path_factory.mktemp(name), checkpointing=name) for name in VALUES}


@pytest.mark.parametrize("name", VALUES)
def test_gradients_are_the_same(ran: dict[str, Ran], name: str) -> None:
    assert ran[name].loss == ran["none"].loss
    assert ran[name].gradients.keys() == ran["none"].gradients.keys()
    for parameter, gradient in ran["none"].gradients.items():
        assert torch.allclose(ran[name].gradients[parameter], gradient, rtol=0, atol=1e-7), parameter


def test_so_many_blocks_run_again(ran: dict[str, Ran]) -> None:
    again = {name: tuple(number - 3 for number in ran[name].blocks()) for name in VALUES}
    assert again == {"none": (0, 0), "every_4": (1, 1), "every_2": (2, 2), "selective": (3, 3), "full": (3, 3)}


def test_selective_multiplies_and_attends_once_only(ran: dict[str, Ran]) -> None:
    products = {name: ran[name].backward.number(PRODUCTS) for name in VALUES}
    assert products["selective"] == products["none"] < products["every_4"] < products["every_2"] < products["full"]
    attentions = {name: ran[name].backward.number(ATTENTION) for name in VALUES}
    assert attentions == {"none": 0, "every_4": 2, "every_2": 4, "selective": 0, "full": 6}
    # The rest of the block does run again.
    for cheap in ("aten::native_layer_norm", "aten::silu", "aten::gelu"):
        assert ran["selective"].backward.counts[cheap] == ran["full"].backward.counts[cheap] > 0
        assert ran["none"].backward.counts[cheap] == 0


def test_less_is_kept_the_more_is_recomputed(ran: dict[str, Ran]) -> None:
    kept = {name: run.kept_bytes for name, run in ran.items()}
    assert kept["none"] > kept["every_4"] > kept["every_2"] > kept["full"]
    assert kept["none"] > kept["selective"] > kept["full"]
    assert kept["full"] < 0.5 * kept["none"]


def test_eager_attention_keeps_its_products(tmp_path: Path) -> None:
    whole, part = (Ran(tmp_path, attention="eager", checkpointing=name) for name in ("none", "selective"))
    assert part.backward.number(PRODUCTS) == whole.backward.number(PRODUCTS)
    assert part.backward.counts["aten::_softmax"] == 6
    assert all(torch.allclose(part.gradients[n], whole.gradients[n], rtol=0, atol=1e-7) for n in whole.gradients)


def test_16_bit_is_recomputed_in_16_bit(tmp_path: Path) -> None:
    whole, part, least = (Ran(tmp_path, precision="bf16", checkpointing=name) for name in ("none", "selective", "full"))
    for run in (part, least):
        assert all(torch.allclose(run.gradients[n], whole.gradients[n], rtol=0, atol=1e-7) for n in whole.gradients)
    assert part.kept_bytes < 0.6 * whole.kept_bytes


def test_tower_and_llm_apart(tmp_path: Path) -> None:
    assert Ran(tmp_path, checkpointing="full", vision_checkpointing="none").blocks() == (3, 6)
    assert Ran(tmp_path, checkpointing="every_2", vision_checkpointing="full").blocks() == (6, 5)


@pytest.mark.parametrize("name", ["selective", "full"])
def test_what_is_frozen_costs_nothing(tmp_path: Path, name: str) -> None:
    """A tower without a graph has nothing to recompute, and nothing to keep for it."""
    frozen = Ran(tmp_path, method="freeze", checkpointing=name)
    plain = Ran(tmp_path, method="freeze", checkpointing=name, vision_checkpointing="none")
    assert frozen.blocks() == plain.blocks() == (3, 6)
    assert frozen.kept_bytes == plain.kept_bytes


class Noisy(nn.Module):
    """A block with dropout, called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(8))

    def forward(self, *, hidden_states: torch.Tensor, scale: float) -> torch.Tensor:
        return nn.functional.dropout(hidden_states @ self.weight, 0.5) * scale


@pytest.mark.parametrize("name", ["full", "selective"])
def test_noise_is_drawn_once(name: str) -> None:
    grads = []
    for value in ("none", name):
        block, x = Noisy(), torch.ones(4, 8, requires_grad=True)
        getattr(checkpointing, value)([block])
        torch.manual_seed(0)
        out = block(hidden_states=x, scale=3.0)
        torch.rand(5)
        out.pow(2).sum().backward()
        grads.append((x.grad, block.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(("name", "number"), [("none", 2), ("full", 3)])
def test_a_frozen_block_above_a_trained_one_is_recomputed(name: str, number: int) -> None:
    block, x = Noisy().requires_grad_(False), torch.ones(4, 8, requires_grad=True)
    getattr(checkpointing, name)([block])
    with Operators() as both:
        block(hidden_states=x, scale=3.0).sum().backward()
    assert both.counts["aten::mm"] == number


def test_every_kept_operator_exists() -> None:
    for name in checkpointing.KEPT:
        namespace, _, operator = name.rpartition("::")
        if namespace in ("aten", "torch_attn"):
            assert hasattr(getattr(torch.ops, namespace), operator), name
    assert torch.ops.higher_order.flex_attention.name() in checkpointing.KEPT


def test_questions_are_answered_all_the_same(tmp_path: Path) -> None:
    answers = []
    for name in ("none", "selective"):
        trial = make_trial(
            tmp_path / name, axes={"checkpointing": name}, recipe={"num_steps": 2},
            evaluation={"num_questions": 6}, model={"name": "egotiny"},
        )  # fmt: skip
        run_here(trial, tmp_path / name)
        answers.append(TrialPaths(tmp_path / name).predictions("after").read_text())
    assert answers[0] == answers[1]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "name"), [("fsdp", "selective"), ("zero3", "selective"), ("zero3", "every_2")])
def test_where_parameters_are_gathered(tmp_path: Path, strategy: str, name: str) -> None:
    traces = []
    for number, axes in enumerate(({"strategy": "ddp"}, {"strategy": strategy, "checkpointing": name})):
        folder = tmp_path / str(number)
        trial = make_trial(folder, axes={"gpus": 2, "micro_batch_size": 2} | axes, model={"name": "egotiny"})
        said, _ = run_ranks(trial, folder, timeout_s=150)[0]
        assert not isinstance(said, BaseException), said
        lines = read_lines(TrialPaths(folder).rank_steps(0), StepRecord)
        traces.append([number for line in lines for number in (line.loss, line.grad_norm)])
    assert len(traces[0]) == 8
    assert traces[1] == pytest.approx(traces[0], rel=1e-4, abs=1e-6)
