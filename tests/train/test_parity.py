"""The same global batches give the same training, however they are split over ranks and micro-steps."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from training_trials import make_trial, one_rank, run_keeping_weights, run_ranks, weights_apart

from egobench.records.measures import MergedStep, StepRecord
from egobench.records.rank import RankSummary
from egobench.records.store import TrialPaths, read_lines
from egobench.records.summary import merge_steps

SPLITS = {
    "whole": {"micro_batch_size": 4},
    "accumulated": {"micro_batch_size": 2, "num_accumulation_steps": 2},
    "two_ranks": {"micro_batch_size": 2, "gpus": 2, "strategy": "ddp"},
}


@dataclass(frozen=True)
class Ran:
    summary: RankSummary
    weights: dict[str, torch.Tensor]
    per_rank: list[list[StepRecord]]
    merged: list[MergedStep]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    results = {}
    for name, axes in SPLITS.items():
        folder = tmp_path_factory.mktemp(name)
        trial = make_trial(folder, axes=axes, model={"name": "egotiny"}, evaluation={"num_questions": 10})
        if trial.num_ranks > 1:
            summary, weights = run_ranks(trial, folder)[0]
            assert isinstance(summary, RankSummary), summary
        else:
            summary, weights = run_keeping_weights(trial, folder, one_rank())
        lines = [read_lines(TrialPaths(folder).rank_steps(rank), StepRecord) for rank in range(trial.num_ranks)]
        results[name] = Ran(summary, weights, lines, merge_steps(lines))
    return results


@pytest.mark.parametrize("split", ["accumulated", "two_ranks"])
def test_same_losses_norms_counts_and_weights(ran: dict[str, Ran], split: str) -> None:
    whole, other = ran["whole"], ran[split]
    assert len(other.merged) == len(whole.merged) == 4
    for a, b in zip(whole.merged, other.merged, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-4, abs=1e-6)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-4)
        same = ("num_samples", "image_tokens", "text_tokens", "supervised_tokens", "learning_rate")
        assert [getattr(a, name) for name in same] == [getattr(b, name) for name in same]
    assert weights_apart(whole.weights, other.weights) <= 1e-5


def test_only_ranks_that_talk_have_communication(ran: dict[str, Ran]) -> None:
    assert all(step.communication_s == 0 for step in ran["whole"].merged)
    assert all(record.communication_s > 0 for lines in ran["two_ranks"].per_rank for record in lines)


def test_the_parts_of_a_step_add_up(ran: dict[str, Ran]) -> None:
    for name in SPLITS:
        for record in (record for lines in ran[name].per_rank for record in lines):
            parts = record.data_s + record.forward_s + record.backward_s + record.communication_s + record.optimizer_s
            assert parts == pytest.approx(record.step_time_s, rel=0.02)
            assert min(record.data_s, record.forward_s, record.backward_s, record.optimizer_s) > 0


def test_steps_leave_no_time_between_them(ran: dict[str, Ran]) -> None:
    for lines in ran["two_ranks"].per_rank:
        spent = sum(record.step_time_s for record in lines[:-1])
        assert lines[-1].started_at - lines[0].started_at == pytest.approx(spent, rel=0.02, abs=0.05)


def test_every_question_is_asked_once_over_the_ranks(ran: dict[str, Ran]) -> None:
    one, two = ran["whole"].summary.after, ran["two_ranks"].summary.after
    assert one is not None
    assert two is not None
    assert one.num_questions == two.num_questions == 10
    assert (two.em, two.f1) == pytest.approx((one.em, one.f1))
    assert two.generated_tokens == one.generated_tokens
