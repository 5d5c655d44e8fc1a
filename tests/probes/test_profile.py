"""Profiled steps are taken like any others, are in no timing, and leave a trace and a table of kernels."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
from training_trials import make_trial, run_here, run_ranks

from egobench.errors import EXIT_ENVIRONMENT
from egobench.probes.kernels import KINDS, PREFIX, STEP, kernels_of
from egobench.probes.memory import CpuMemory
from egobench.probes.profile import SteadyMemory
from egobench.probes.replay import replay_script
from egobench.records.measures import StepRecord
from egobench.records.rank import RankReport
from egobench.records.store import TrialPaths, read_document, read_lines, write_document
from egobench.records.trial import Drill, Trial
from egobench.spec.keep import Profile
from egobench.train.drill import DrillError


def profiled(trial: Trial, *steps: int, **profile: Any) -> Trial:
    return trial.model_copy(update={"profile": Profile(steps=steps, **profile)})


def read_trace(path: Path) -> dict[str, Any]:
    trace: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return trace


def names(trace: dict[str, Any]) -> list[str]:
    return [event["name"] for event in trace["traceEvents"] if event.get("ph") == "X"]


def test_chosen_steps_are_watched_and_change_nothing(tmp_path: Path) -> None:
    plain = make_trial(tmp_path / "plain", recipe={"num_steps": 8})
    expected = [step.loss for step in run_here(plain, tmp_path / "plain")[1]]
    trial = profiled(make_trial(tmp_path, recipe={"num_steps": 8}), 2, 3, 6)
    summary, steps = run_here(trial, tmp_path)
    assert [step.loss for step in steps] == expected
    assert [step.step for step in steps if step.excluded] == [2, 3, 4, 6, 7]
    assert {step.excluded for step in steps} == {"", "profiled"}

    found = sorted((tmp_path / "profile").iterdir())
    assert [path.name for path in found] == ["trace-2.json.gz", "trace-6.json.gz"]
    traces = [read_trace(path) for path in found]
    assert [names(trace).count(STEP) for trace in traces] == [2, 1]
    for phase in ("data", "forward", "backward", "optimizer"):
        assert [names(trace).count(f"{PREFIX}{phase}") for trace in traces] == [2, 1]
    assert names(traces[0]).count("Optimizer.step#AdamW.step") == 2

    kernels = summary.kernels
    assert kernels is not None and kernels == kernels_of(traces)  # anyone can derive the table from what is left
    assert kernels.num_steps == 3
    assert min(kernels.matmul_s, kernels.attention_s, kernels.elementwise_s, kernels.optimizer_s, kernels.idle_s) > 0
    assert kernels.communication_s == 0
    assert dict(kernels.top)["aten::mm"] > 0


def test_the_kinds_add_up_to_the_step(tmp_path: Path) -> None:
    summary, _ = run_here(profiled(make_trial(tmp_path), 2), tmp_path)
    assert summary.kernels is not None
    total_s = sum(getattr(summary.kernels, f"{kind}_s") for kind in KINDS) + summary.kernels.idle_s
    trace = read_trace(tmp_path / "profile/trace-2.json.gz")
    step = next(event for event in trace["traceEvents"] if event["name"] == STEP)
    assert total_s == pytest.approx(step["dur"] * 1e-6)


def test_all_ranks_are_watched_and_the_first_one_tells(tmp_path: Path) -> None:
    trial = profiled(make_trial(tmp_path, axes={"strategy": "ddp", "gpus": 2, "num_accumulation_steps": 2}), 1, 2)
    (first, _), (second, _) = run_ranks(trial, tmp_path, timeout_s=150)
    assert first.kernels is not None and second.kernels is None
    assert first.kernels.communication_s > 0
    trace = read_trace(tmp_path / "profile/trace-1.json.gz")
    assert "gloo:all_reduce" in names(trace)
    assert names(trace).count(f"{PREFIX}forward") == 4
    for rank in range(2):
        steps = read_lines(TrialPaths(tmp_path).rank_steps(rank), StepRecord)
        assert [step.step for step in steps if step.excluded] == [1, 2, 3]


def test_a_failure_while_watching_is_told_and_leaves_no_profiler(tmp_path: Path) -> None:
    drill = Drill(kind="raise", step=1, phase="backward")
    with pytest.raises(DrillError):
        run_here(profiled(make_trial(tmp_path / "a", drill=drill), 1), tmp_path / "a")
    assert not torch.autograd._profiler_enabled()
    assert run_here(profiled(make_trial(tmp_path / "b"), 1), tmp_path / "b")[0].kernels is not None


def test_memory_of_the_profiler_is_not_that_of_training() -> None:
    memory = SteadyMemory(CpuMemory())
    memory.reset()
    before = memory.peak().allocated_bytes
    memory.pause()
    held = np.ones(2**25)  # 256 MiB
    assert memory.peak().allocated_bytes == before
    del held
    memory.resume()
    assert memory.peak().allocated_bytes < before + 2**26
    held = np.ones(2**25)
    assert memory.peak().allocated_bytes > before + 2**27
    del held


def stand_in(folder: Path, tool: str) -> dict[str, str]:
    """Put a program named like an NVIDIA tool on PATH, that notes how it was called and runs what it was given."""
    program = folder / tool
    folder.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$RANK $*" >> {folder}/calls\nwhile [ "$1" != {sys.executable} ]; do shift; done\nexec "$@"\n'
    )
    program.chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_trial_can_be_run_again_under_nsys(tmp_path: Path) -> None:
    folder = tmp_path / "a trial"
    trial = profiled(make_trial(folder, recipe={"num_steps": 3}), 0, 2, tool="nsys")
    write_document(TrialPaths(folder).trial, trial)
    summary, steps = run_here(trial, folder)
    assert summary.kernels is None
    assert [step.excluded for step in steps] == ["profiled"] * 3
    script = folder / "profile/replay.sh"

    done = subprocess.run([script], env=os.environ | {"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (EXIT_ENVIRONMENT, "nsys is not on PATH: install NVIDIA Nsight Systems\n")

    done = subprocess.run([script], env=stand_in(tmp_path / "bin", "nsys"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (call,) = (tmp_path / "bin/calls").read_text().splitlines()
    assert call.startswith("0 profile ")
    assert "--capture-range=cudaProfilerApi --capture-range-end=repeat:2" in call
    assert f"--output {folder}/profile/rank%q{{RANK}} " in call
    again = TrialPaths(folder / "profile/replay")
    report = read_document(again.rank_report(0), RankReport)
    assert report is not None and report.outcome == "ok"
    assert [step.loss for step in read_lines(again.rank_steps(0), StepRecord)] == [step.loss for step in steps]


def test_ncu_watches_one_rank_only(tmp_path: Path) -> None:
    alone = replay_script(profiled(make_trial(tmp_path), 1, tool="ncu"))
    assert "ncu --profile-from-start off" in alone and "waits for ever" not in alone
    trial = profiled(make_trial(tmp_path, axes={"strategy": "ddp", "gpus": 2}), 1, tool="ncu")
    script = tmp_path / "replay.sh"
    script.write_text(replay_script(trial))
    env = stand_in(tmp_path / "bin", "ncu")
    done = subprocess.run(["sh", str(script)], env=env, capture_output=True, text=True)
    assert done.returncode == EXIT_ENVIRONMENT and "waits for ever: use nsys" in done.stderr
    assert not (tmp_path / "bin/calls").exists()
