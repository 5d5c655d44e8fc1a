"""The largest micro-batch of the run is tried first, and training does not notice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_trials import make_trial, run_here, run_ranks, setup_here

from egobench.data.batches import Batch, in_order, pad_to_longest
from egobench.models.prompt import IGNORED, Encoded
from egobench.probes.pulse import read_pulse
from egobench.records.measures import StepRecord
from egobench.records.store import TrialPaths, read_lines
from egobench.records.summary import merge_steps
from egobench.train import dry_run, loop, losses
from egobench.train.feed import Dealt, Feed
from egobench.train.losses import Loss
from egobench.train.rank import Rank
from egobench.train.sampler import Sampler
from egobench.train.setup import Work
from egobench.train.worst_case import largest, run_worst_case
from egobench.worker.classify import classify, describe


def dealt_batches(feed: Feed) -> list[Batch]:
    batches = []
    while True:
        try:
            batches.append(feed.next().batch)
        except StopIteration:
            return batches


@pytest.mark.parametrize("padding", ["dynamic", "max", "bucketed", "packed"])
def test_no_later_micro_batch_is_larger(tmp_path: Path, padding: str) -> None:
    axes = {"padding": padding, "micro_batch_size": 3, "num_accumulation_steps": 2}
    work = setup_here(make_trial(tmp_path, axes=axes, recipe={"num_steps": 12}))
    (found,) = largest(work.feed, work.material.train.encoded)
    sizes = [batch.input_ids.numel() for batch in dealt_batches(work.feed)]
    assert len(sizes) == 24  # looking ahead dealt nothing
    assert found.batch.input_ids.numel() == max(sizes)
    assert (min(sizes) < max(sizes)) == (padding != "max")


def test_the_one_with_most_pictures_is_tried_as_well() -> None:
    # Sample n is n + 2 tokens long; number 3 is short and has three pictures.
    encoded = [Encoded((1, 2, *[7] * n), (IGNORED, IGNORED, *[7] * n), 2, 3 if n == 3 else 1) for n in range(10)]

    def collate(indices: Sequence[int]) -> Batch:
        held = [encoded[index] for index in indices]
        pixels = np.zeros((sum(item.num_image_tokens for item in held), 2, 2, 3), dtype=np.uint8)
        return pad_to_longest(held, pixels, pad_id=0, max_length=16)

    def feed(rank: int) -> Feed:
        return Feed(
            encoded, collate, in_order, Sampler(10, 0), Rank(rank, rank, 2, torch.device("cpu")),
            micro_batch_size=1, num_accumulation_steps=1, num_steps=5, is_costly=False,
        )  # fmt: skip

    for rank in range(2):
        lengths = [batch.lengths[0] for batch in dealt_batches(feed(rank))]
        found = [dealt.batch.lengths[0] for dealt in largest(feed(rank), encoded)]
        assert found == [max(lengths), 5] if 5 in lengths else [max(lengths)]


@pytest.mark.parametrize("axes", [{}, {"num_accumulation_steps": 2, "precision": "fp16"}, {"optimizer": "adamw_fused"}])
def test_nothing_is_left_behind(tmp_path: Path, axes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, drawn = losses.PLAIN, []

    def compute(*arguments: Any) -> torch.Tensor:
        drawn.append((torch.rand(1), np.random.rand()))  # as dropout would
        return plain.compute(*arguments)

    monkeypatch.setattr(losses, "PLAIN", Loss(plain.install, compute))
    work = setup_here(make_trial(tmp_path, axes=axes))
    weights = {name: tensor.clone() for name, tensor in work.model.state_dict().items()}
    scaler = work.strategy.scaler.state_dict()  # type: ignore[attr-defined]
    random, numpy_random = torch.get_rng_state(), np.random.get_state()[1:3]
    run_worst_case(work)
    assert drawn
    assert all(torch.equal(tensor, weights[name]) for name, tensor in work.model.state_dict().items())
    assert all(parameter.grad is None for parameter in work.model.parameters())
    assert not work.optimizer.state
    assert work.strategy.scaler.state_dict() == scaler  # type: ignore[attr-defined]
    assert torch.equal(torch.get_rng_state(), random)
    assert str(np.random.get_state()[1:3]) == str(numpy_random)
    assert len(dealt_batches(work.feed)) == 4 * int(axes.get("num_accumulation_steps", 1))


def test_it_goes_forward_and_backward_with_gradients_that_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = setup_here(make_trial(tmp_path, axes={"num_accumulation_steps": 3}))
    passes: list[tuple[int, bool]] = []
    original = dry_run.run

    def run(work: Work, dealt: Dealt, *, is_last: bool) -> None:
        original(work, dealt, is_last=is_last)
        passes.append((sum(p.grad is not None for p in work.model.parameters()), is_last))

    monkeypatch.setattr(dry_run, "run", run)
    run_worst_case(work)
    number = sum(p.requires_grad for p in work.model.parameters())
    assert passes == [(number, False), (number, True)]


def test_the_loss_trace_is_the_same_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = {"num_accumulation_steps": 2, "micro_batch_size": 2}
    traces = []
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr(loop, "run_worst_case", lambda work: None)
        steps = run_here(make_trial(tmp_path / name, axes=axes), tmp_path / name)[1]
        traces.append([(step.loss, step.grad_norm) for step in steps])
    assert traces[0] == traces[1]


def test_its_time_is_part_of_loading_and_of_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before: list[float] = []
    original = dry_run.run

    def run(work: Work, dealt: Dealt, *, is_last: bool) -> None:
        before.append(work.stages.outside_s["load"])
        original(work, dealt, is_last=is_last)
        time.sleep(1.0)

    monkeypatch.setattr(dry_run, "run", run)
    summary, steps = run_here(make_trial(tmp_path), tmp_path)
    assert summary.loading_s is not None and summary.loading_s > before[0] + 1.0
    assert summary.began_at is not None and steps[0].started_at > summary.began_at + summary.loading_s - 0.1


class TooMuch(torch.autograd.Function):
    """Asks for more than there is, in the backward pass."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        torch.empty(2**60, dtype=torch.uint8)
        return grads[0]


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_running_out_of_memory_shows_before_step_0(tmp_path: Path, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make_trial(tmp_path, recipe={"num_steps": 12})
    work = setup_here(trial)
    widest = largest(work.feed, work.material.train.encoded)[0].batch.input_ids.numel()
    plain = losses.PLAIN

    def compute(model: Any, batch: Batch, pixels: torch.Tensor) -> torch.Tensor:
        loss = plain.compute(model, batch, pixels)
        if batch.input_ids.numel() < widest:
            return loss
        if phase == "forward":
            torch.empty(2**60, dtype=torch.uint8)
        too_much: torch.Tensor = TooMuch.apply(loss)
        return too_much

    monkeypatch.setattr(losses, "PLAIN", Loss(plain.install, compute))
    paths = TrialPaths(tmp_path)
    with pytest.raises(RuntimeError) as caught:
        run_here(trial, tmp_path)
    assert classify(caught.value, on_gpu=False) == "oom"
    where = read_pulse(paths.rank_pulse(0))
    assert where is not None and (where.phase, where.step) == (phase, -1)
    failure = describe(caught.value, 0, where, "oom", on_gpu=False)
    assert failure.message.startswith(
        "RuntimeError: the worst-case micro-batch, tried before training (4 samples in 4 x "
    )
    assert failure.requested_bytes == 2**60
    assert not paths.rank_steps(0).exists()


def test_ranks_go_through_it_together(tmp_path: Path) -> None:
    axes = {"micro_batch_size": 2, "padding": "bucketed"}
    trial = make_trial(tmp_path, axes=axes | {"strategy": "ddp", "gpus": 2})
    said = run_ranks(trial, tmp_path, timeout_s=150)
    assert not any(isinstance(summary, BaseException) for summary, _ in said), said
    lines = [read_lines(TrialPaths(tmp_path).rank_steps(rank), StepRecord) for rank in range(2)]
    # One rank with the same global batch: a gradient that was left behind would show in the second loss.
    alone = make_trial(tmp_path / "alone", axes=axes | {"num_accumulation_steps": 2})
    expected = [step.loss for step in run_here(alone, tmp_path / "alone")[1]]
    assert [step.loss for step in merge_steps(lines)] == pytest.approx(expected, rel=1e-5)


def test_the_size_of_the_optimizers_states_is_known_before_they_are(tmp_path: Path) -> None:
    work = setup_here(make_trial(tmp_path))
    assert dry_run.reserve_states(work) is None  # a CPU promises more memory than it has
    expected = sum(dry_run.state_bytes(p, "adamw", torch.device("cpu")) for p in work.model.parameters())
    dealt = work.feed.next()
    work.strategy.backward(work.loss.compute(work.model, dealt.batch, dealt.pixel_values))
    work.strategy.update(1.0)
    held = [tensor for state in work.optimizer.state.values() for tensor in state.values() if tensor.numel() > 1]
    assert expected == sum(tensor.numel() * tensor.element_size() for tensor in held)
