"""The peer that egobench is compared with trains the same thing: same losses, step by step, from the same trial."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from training_trials import make_trial, run_here

from benchmarks.peer_ratio import Run, TrialPaths, loss_gap, read_run
from benchmarks.peers.settings import Settings
from egobench.records.measures import StepRecord
from egobench.records.store import read_lines, write_document

ROOT = Path(__file__).parents[2]
RECIPE = {
    "num_steps": 5, "learning_rate": 2e-3, "max_length": 96, "schedule": "linear", "num_warmup_steps": 2,
    "weight_decay": 0.1, "betas": (0.9, 0.98), "max_grad_norm": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Both:
    ours: list[StepRecord]
    theirs: list[StepRecord]
    run: Run


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("peer")
    trial = make_trial(
        folder, model={"name": "egotiny"}, recipe=RECIPE, data={"domain": "workshop"},
        axes={"micro_batch_size": 4, "num_accumulation_steps": 2, "optimizer": "adamw_fused", "loss": "chunked"},
    )  # fmt: skip
    ours = run_here(trial, folder / "ours")[1]
    paths = TrialPaths(folder / "theirs")
    write_document(paths.trial, trial)
    script = ROOT / "benchmarks" / "peers" / "hf_trainer.py"
    done = subprocess.run(
        [sys.executable, str(script), str(paths.trial), "--out", str(paths.folder), *Settings().flags()],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return Both(ours, read_lines(paths.rank_steps(0), StepRecord), read_run(paths, 1))


@pytest.mark.slow
def test_the_losses_are_the_same(both: Both) -> None:
    assert len(both.theirs) == len(both.ours) == RECIPE["num_steps"]
    assert [step.loss for step in both.theirs] == pytest.approx([step.loss for step in both.ours], rel=1e-4)
    gap = loss_gap(both.run.losses, [step.loss for step in both.ours])
    assert gap is not None and gap < 1e-3
    # Each step begins with what the one before it learned: rate, clipping, decay and moments are the same too.
    assert both.ours[-1].loss < both.ours[0].loss


@pytest.mark.slow
def test_the_same_tokens_are_counted(both: Both) -> None:
    for name in ("num_samples", "image_tokens", "text_tokens", "supervised_tokens", "padding_tokens", "learning_rate"):
        assert [getattr(step, name) for step in both.theirs] == [getattr(step, name) for step in both.ours], name


@pytest.mark.slow
def test_its_run_is_read_as_one_of_ours(both: Both) -> None:
    measures = both.run.measures
    assert measures is not None and measures.num_steps == RECIPE["num_steps"]
    assert measures.tokens_per_s > 0 and (measures.peak_memory_bytes or 0) > 2**20


def test_settings_survive_the_command_line() -> None:
    settings = Settings(optim="adamw_torch", compile=True, workers=2)
    assert settings.name == "optim=adamw_torch workers=2 compile"
    assert "--compile=1" in settings.flags() and "--liger=0" in settings.flags()


def test_traces_of_other_steps_are_not_compared() -> None:
    assert loss_gap([1.0, 2.0], [1.0]) is None and loss_gap([], []) is None
    assert loss_gap([1.0, 2.0], [1.0, 2.5]) == 0.5
