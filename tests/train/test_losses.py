"""Every way to make the loss gives the same loss and the same gradients, and keeps fewer logits."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_trials import NOISE, make_trial, run_ranks, setup_here, weights_apart

from egobench.errors import EnvironmentProblem
from egobench.models.parts import head, llm_blocks
from egobench.records.measures import StepRecord
from egobench.records.store import TrialPaths, read_lines
from egobench.train import losses
from egobench.train.losses import CHUNKED, FUSED_LINEAR, PLAIN, Loss
from egobench.train.setup import Work

VOCABULARY, HIDDEN = 768, 128
FEW_ROWS = 4 * VOCABULARY * 3  # three rows of logits a chunk: the last chunk is a shorter one


class Shapes(TorchDispatchMode):
    """Notes every tensor that is made: the operator and the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.Size]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen += [(func.name(), leaf.shape) for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        return out

    def most_logits(self) -> int:
        """Return the most positions whose logits lived in one tensor."""
        logits = [shape for _, shape in self.seen if len(shape) > 1 and shape[-1] == VOCABULARY]
        return max(shape[:-1].numel() for shape in logits if shape != (HIDDEN, VOCABULARY))  # the transposed weight


def ready(folder: Path, prepare: Callable[[nn.Module], None], **axes: Any) -> Work:
    work = setup_here(make_trial(folder, axes={"micro_batch_size": 3} | axes))
    prepare(work.model)
    return work


def as_it_is(model: nn.Module) -> None:
    """Train everything."""


def frozen_head(model: nn.Module) -> None:
    head(model).requires_grad_(False)


def tied(model: Any) -> None:
    model.lm_head.weight = model.get_input_embeddings().weight


def gradients(work: Work, loss: Loss) -> tuple[float, dict[str, torch.Tensor], Shapes]:
    dealt = work.feed.next()
    with Shapes() as shapes:
        with work.precision.compute(work.rank.device):
            total = loss.compute(work.model, dealt.batch, dealt.pixel_values) / dealt.global_supervised_tokens
        total.backward()
    return total.item(), {n: p.grad for n, p in work.model.named_parameters() if p.grad is not None}, shapes


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        if not name.endswith("k_proj.bias"):  # softmax cancels it: its gradient is rounding noise
            difference = (one[name] - other[name]).norm() / one[name].norm().clamp(min=1e-6)
            assert difference < tolerance, name


@pytest.mark.parametrize("prepare", [as_it_is, frozen_head, tied])
def test_chunked_is_plain_with_a_few_logits_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[nn.Module], None]
) -> None:
    monkeypatch.setattr(losses, "CHUNK_BYTES", FEW_ROWS)
    loss, expected, shapes = gradients(ready(tmp_path, prepare), PLAIN)
    chunked, found, fewer = gradients(ready(tmp_path, prepare, loss="chunked"), CHUNKED)
    assert chunked == pytest.approx(loss, rel=1e-6)
    same(expected, found, 1e-5)
    assert shapes.most_logits() > 100
    assert fewer.most_logits() == 3
    # A weight's gradient is made where it is trained, and nowhere else.
    assert (("aten::mm", (VOCABULARY, HIDDEN)) in fewer.seen) == (prepare is not frozen_head)


@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
def test_the_last_block_feeds_forward_only_what_is_supervised(tmp_path: Path, checkpointing: str) -> None:
    loss, expected, _ = gradients(ready(tmp_path, as_it_is), PLAIN)
    work = ready(tmp_path, as_it_is, loss="chunked", checkpointing=checkpointing)
    batch = next(work.feed.planned())
    supervised = sum(work.material.train.encoded[index].num_supervised for index in batch)
    rows: list[list[int]] = [[], []]
    for block, seen in zip(llm_blocks(work.model)[-2:], rows, strict=True):
        block.mlp.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].shape[:-1].numel()))
    found_loss, found, _ = gradients(work, CHUNKED)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    same(expected, found, 1e-5)
    assert set(rows[1]) == {supervised} and min(rows[0]) > 5 * supervised
    assert len(rows[1]) == (1 if checkpointing == "none" else 2)  # recomputation is told, too


@pytest.mark.parametrize("precision", ["bf16", "bf16_pure", "fp16"])
def test_chunked_rounds_as_plain_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr(losses, "CHUNK_BYTES", FEW_ROWS)
    loss, expected, _ = gradients(ready(tmp_path, as_it_is, precision=precision), PLAIN)
    chunked, found, _ = gradients(ready(tmp_path, as_it_is, precision=precision, loss="chunked"), CHUNKED)
    assert chunked == pytest.approx(loss, rel=1e-6)
    assert {gradient.dtype for gradient in found.values()} == {gradient.dtype for gradient in expected.values()}
    same(expected, found, 2e-2)


def test_small_gradients_are_scaled_before_they_are_rounded(tmp_path: Path) -> None:
    def slope(loss: Loss, name: str) -> torch.Tensor:
        # A trained model is sure of most tokens: the slopes of the others are too small for 16 bits, unless scaled.
        axes = {"precision": "fp16", "loss": name, "micro_batch_size": 3}
        work = setup_here(make_trial(tmp_path, axes=axes, model={"name": "egotiny"}))
        dealt = work.feed.next()
        with work.precision.compute(work.rank.device):
            total = loss.compute(work.model, dealt.batch, dealt.pixel_values)
        (total * 2.0**12).backward()
        found = head(work.model).weight.grad
        assert found is not None
        return found

    expected, found = slope(PLAIN, "plain"), slope(CHUNKED, "chunked")
    assert ((expected - found).norm() / expected.norm()) < 1e-3
    assert ((expected == 0) == (found == 0)).float().mean() > 0.999


def test_a_batch_without_supervision_has_no_loss_and_no_slope(tmp_path: Path) -> None:
    work = ready(tmp_path, as_it_is, loss="chunked")
    dealt = work.feed.next()
    dealt.batch.labels.fill_(-100)
    work.loss.compute(work.model, dealt.batch, dealt.pixel_values).backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in work.model.parameters())


def test_the_head_stays_what_it_was(tmp_path: Path) -> None:
    plain, chunked = ready(tmp_path, as_it_is), ready(tmp_path, as_it_is, loss="chunked")
    gradients(chunked, CHUNKED)
    names = [name for name, _ in plain.model.named_parameters()]
    assert [name for name, _ in chunked.model.named_parameters()] == names
    assert isinstance(head(chunked.model), nn.Linear)
    state = torch.randn(2, 5, HIDDEN)
    assert torch.equal(head(chunked.model)(state), head(plain.model)(state))  # what questions are answered with


def test_an_error_leaves_no_targets_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "0")  # a compiled trial of this process has set it
    work = ready(tmp_path, as_it_is, loss="chunked")
    dealt = work.feed.next()
    with pytest.raises(ValueError, match="do not match"):
        work.loss.compute(work.model, dealt.batch, dealt.pixel_values[:1])
    assert head(work.model)(torch.randn(1, 1, HIDDEN)).shape == (1, 1, VOCABULARY)


def test_chunks_fill_a_gpu_and_no_more() -> None:
    assert losses.rows_per_chunk(151_674) == 384
    assert losses.rows_per_chunk(10**9) == 1


def trained(folder: Path, **axes: Any) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    trial = make_trial(folder, axes={"micro_batch_size": 2, "gpus": 2} | axes, model={"name": "egotiny"})
    said, weights = run_ranks(trial, folder, timeout_s=150)[0]
    assert not isinstance(said, BaseException), said
    lines = read_lines(TrialPaths(folder).rank_steps(0), StepRecord)
    return [(line.loss, line.grad_norm) for line in lines], weights


@pytest.mark.parametrize(
    "strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow), pytest.param("zero3", marks=pytest.mark.slow)]
)
def test_chunked_trains_as_plain_does_in_every_strategy(tmp_path: Path, strategy: str) -> None:
    expected, weights = trained(tmp_path / "plain", strategy="ddp")
    found, own = trained(tmp_path / "chunked", strategy=strategy, loss="chunked", checkpointing="full")
    assert len(found) == 4
    assert [value for line in found for value in line] == pytest.approx(
        [value for line in expected for value in line], rel=1e-4, abs=1e-6
    )
    if strategy == "ddp":  # the others' state dicts hold pieces; tests of strategies compare their weights
        assert weights_apart(own, weights) < NOISE


def test_a_missing_package_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", None)
    with pytest.raises(EnvironmentProblem, match=r"needs liger-kernel: pip install 'egobench\[liger\]'"):
        setup_here(make_trial(tmp_path, axes={"loss": "fused_linear"}))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="TRITON_INTERPRET=1 runs Liger on a CPU")
@pytest.mark.parametrize("prepare", [as_it_is, frozen_head])
def test_fused_linear_in_triton_s_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[nn.Module], None]
) -> None:
    pytest.importorskip("liger_kernel.ops")
    monkeypatch.setattr(losses, "CHUNK_BYTES", FEW_ROWS)
    loss, expected, _ = gradients(ready(tmp_path, prepare), PLAIN)
    fused, found, fewer = gradients(ready(tmp_path, prepare, loss="fused_linear"), FUSED_LINEAR)
    assert fused == pytest.approx(loss, rel=1e-5)
    same(expected, found, 1e-3)
    assert fewer.most_logits() <= 6  # it rounds the size of a chunk up to a power of two
