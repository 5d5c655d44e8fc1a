"""Several trials of a sharding strategy in the same real ranks, and what each left."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from training_trials import in_ranks, make_trial, one_rank, run_keeping_weights, weights_apart

from egobench.models.internvl import build
from egobench.probes.clock import NullClock
from egobench.probes.pulse import Pulse
from egobench.records.measures import MergedStep, StepRecord
from egobench.records.rank import RankSummary
from egobench.records.store import TrialPaths, read_lines
from egobench.records.summary import merge_steps
from egobench.records.trial import Trial
from egobench.train.feed import Dealt
from egobench.train.optimizers import set_learning_rate
from egobench.train.rank import Rank
from egobench.train.setup import Work, setup
from egobench.train.stages import Stages

NUM_QUESTIONS = 9
"""In batches of 4, two ranks make two batches and one."""
GLOBAL_BATCH = 4
Axes = Mapping[str, Any]


@dataclass(frozen=True)
class Ran:
    summary: RankSummary
    weights: dict[str, torch.Tensor]
    per_rank: list[list[StepRecord]]

    @property
    def steps(self) -> list[MergedStep]:
        return merge_steps(self.per_rank)


def trial_of(folder: Path, axes: Axes) -> Trial:
    """Make a trial of the same global batches for any ranks and micro-steps; `model` may be among the axes."""
    own = {"gpus": 1, "num_accumulation_steps": 1} | dict(axes)
    model = own.pop("model", {"name": "egotiny"})
    micro = GLOBAL_BATCH // (own["gpus"] * own["num_accumulation_steps"])
    evaluation = {"num_questions": NUM_QUESTIONS, "batch_size": 4, "before": True}
    return make_trial(folder, axes={"micro_batch_size": micro} | own, model=model, evaluation=evaluation)


def tied_checkpoint(folder: Path) -> Axes:
    """Write egotiny with its head tied to its embedding; return what asks for it."""
    loaded = build({"name": "egotiny"}, attention="sdpa", dtype=torch.float32, device=torch.device("cpu"), seed=0)
    model = loaded.model
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.lm_head.weight = model.get_input_embeddings().weight
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return {"model": {"path": str(folder)}}


def run_alone(axes: Axes, folder: Path) -> Ran:
    folder.mkdir(parents=True, exist_ok=True)
    summary, weights = run_keeping_weights(trial_of(folder, axes), folder, one_rank())
    return Ran(summary, weights, [read_lines(TrialPaths(folder).rank_steps(0), StepRecord)])


def run_cases(cases: Mapping[str, Axes], num_ranks: int, folder: Path) -> dict[str, Ran]:
    """Run each case in turn in the same ranks."""
    said = in_ranks(num_ranks, folder, functools.partial(_run_each, dict(cases)), timeout_s=600)
    failed = [one for one in said if not isinstance(one, dict)]
    assert not failed, failed
    lines = {
        name: [read_lines(TrialPaths(folder / name).rank_steps(rank), StepRecord) for rank in range(num_ranks)]
        for name in cases
    }
    return {name: Ran(*said[0][name], lines[name]) for name in cases}


def _run_each(cases: dict[str, Axes], folder: Path, rank: Rank) -> dict[str, Any]:
    results = {}
    for name, axes in cases.items():
        (folder / name).mkdir(exist_ok=True)
        own = {"gpus": rank.num_ranks} | dict(axes)
        results[name] = run_keeping_weights(trial_of(folder / name, own), folder / name, rank)
    return results


def set_up(folder: Path, rank: Rank, axes: Axes) -> Work:
    """Set a trial up, without running it."""
    folder.mkdir(exist_ok=True)
    stages = Stages(Pulse(TrialPaths(folder).rank_pulse(rank.rank)), NullClock())
    return setup(trial_of(folder, {"gpus": rank.num_ranks} | dict(axes)), rank, stages, [])


def update(work: Work, dealt: Dealt) -> float:
    """Make one update with one micro-batch; return the gradient norm."""
    set_learning_rate(work.optimizer, 1e-3)
    with work.strategy.accumulate(is_last=True):
        with work.strategy.precision.compute(work.rank.device):
            loss = work.loss.compute(work.model, dealt.batch, dealt.pixel_values)
        work.strategy.backward(loss / dealt.global_supervised_tokens)
    return work.strategy.update(1.0).item()


def save_and_load(axes: Axes, folder: Path, rank: Rank) -> dict[str, Any]:
    """Train, save, train on; load into a fresh trial and train on from there; say what both ended with."""
    work = set_up(folder / "one", rank, axes)
    batches = [work.feed.next() for _ in range(3)]
    update(work, batches[0])
    update(work, batches[1])
    work.strategy.save(folder / "saved")
    kept = _cloned(work)
    last = update(work, batches[2])
    ended = _cloned(work)
    again = set_up(folder / "two", rank, axes)
    fresh = _cloned(again)
    again.strategy.load(folder / "saved")
    loaded = _cloned(again)
    norms = (last, update(again, batches[2]))
    weights = {"kept": kept, "loaded": loaded, "fresh": fresh, "ended": ended, "ended_again": _cloned(again)}
    return weights | {"norms": norms}


def check_saved(said: list[dict[str, Any]]) -> None:
    first = said[0]
    assert largest_difference(first["kept"], first["loaded"]) == 0
    assert largest_difference(first["kept"], first["fresh"]) > 1e-4
    # The third update needs the moments of the first two.
    assert largest_difference(first["ended"], first["ended_again"]) == 0
    assert all(one["norms"][0] == one["norms"][1] for one in said)
    assert all(one["kept"] == {} for one in said[1:])


def _cloned(work: Work) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in work.strategy.weights().items()}


def largest_difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """Return the largest absolute difference of two models."""
    assert set(one) == set(other), set(one) ^ set(other)
    # Softmax cancels a key bias exactly: its gradient is rounding noise, which Adam blows up.
    return max(
        (one[name].float() - other[name].float()).abs().max().item() for name in one if not name.endswith("k_proj.bias")
    )


def compare(one: Ran, other: Ran) -> dict[str, float]:
    """Return how far apart two trainings of the same batches are."""
    pairs = list(zip(one.steps, other.steps, strict=True))
    assert len(pairs) == 4
    for a, b in pairs:
        same = ("num_samples", "image_tokens", "text_tokens", "supervised_tokens", "learning_rate")
        assert [getattr(a, name) for name in same] == [getattr(b, name) for name in same]
    return {
        "loss": max(abs(a.loss - b.loss) / a.loss for a, b in pairs),
        "grad_norm": max(abs(a.grad_norm - b.grad_norm) / a.grad_norm for a, b in pairs),
        "weights": weights_apart(one.weights, other.weights),
    }


def predictions(folder: Path, when: str) -> list[str]:
    return sorted(TrialPaths(folder).predictions(when).read_text().splitlines())


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
