"""The same loop on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_trials import make_trial, run_here

from egobench.records.provenance import Provenance
from egobench.records.store import TrialPaths, read_document
from egobench.records.trial import Drill
from egobench.train.errors import Diverged

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loop_on_cuda(tmp_path: Path, precision: str) -> None:
    trial = make_trial(
        tmp_path, device="cuda", axes={"precision": precision, "optimizer": "adamw_fused"},
        recipe={"num_steps": 30}, evaluation={"num_questions": 8}, model={"name": "egotiny"},
    )  # fmt: skip
    summary, steps = run_here(trial, tmp_path)
    assert [step.step for step in steps] == list(range(30))
    assert steps[-1].loss < steps[0].loss
    for step in steps:
        parts = step.data_s + step.forward_s + step.backward_s + step.communication_s + step.optimizer_s
        assert parts == pytest.approx(step.step_time_s, rel=0.02)
        assert min(step.forward_s, step.backward_s, step.optimizer_s) > 0
    assert sum(s.step_time_s for s in steps[:-1]) == pytest.approx(
        steps[-1].started_at - steps[0].started_at, rel=0.1, abs=0.05
    )
    assert summary.peak_allocated_bytes is not None and summary.peak_reserved_bytes is not None
    assert 0 < summary.peak_allocated_bytes <= summary.peak_reserved_bytes
    assert summary.peak_rss_growth_bytes is None
    assert (summary.peak_nvml_used_bytes or 0) > summary.peak_allocated_bytes
    provenance = read_document(TrialPaths(tmp_path).provenance, Provenance)
    assert provenance is not None and provenance.gpus


def test_cpu_and_gpu_losses_agree(tmp_path: Path) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        trial = make_trial(tmp_path / device, device=device, model={"name": "egotiny"})
        losses[device] = [step.loss for step in run_here(trial, tmp_path / device)[1]]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


def test_oom_is_torchs_own(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, device="cuda", drill=Drill(kind="oom", step=1, phase="backward"))
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        run_here(trial, tmp_path)
    assert (tmp_path / "ranks/0.jsonl").read_text().count("\n") == 1


def test_nan_is_found_at_its_step_although_it_is_read_late(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, device="cuda", recipe={"num_steps": 20}, drill=Drill(kind="nan", step=3))
    with pytest.raises(Diverged) as caught:
        run_here(trial, tmp_path)
    assert caught.value.step == 3
