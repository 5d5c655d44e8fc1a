"""What is to run on a lent GPU plans here as it is meant, and its rehearsal runs everywhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from egobench.plan.expand import plan
from egobench.records.sweep import Sweep
from egobench.spec.matrix import load_matrix

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SUITE = ("gpu_suite", "gpu_accuracy", "gpu_peer")
FOR_GPUS = ("gpu_formats", "gpu_kernels", "fused_loss_on_gpu")


def dropped(sweep: Sweep) -> list[str]:
    return [cell.because for cell in sweep.cells if cell.outcome == "incompatible"]


@pytest.mark.parametrize("name", SUITE)
def test_every_cell_can_run_on_the_gpu(name: str) -> None:
    sweep = plan(load_matrix(BENCHMARKS / f"{name}.yaml"))
    assert sweep.site.device == "cuda" and dropped(sweep) == []
    assert sweep.baselines


def test_the_question_is_asked_at_one_batch_and_from_the_plain_way() -> None:
    sweep = plan(load_matrix(BENCHMARKS / "gpu_suite.yaml"))
    cells = {cell.cell_id: cell.axes for cell in sweep.cells}
    (workload, baseline), *others = sweep.baselines.items()
    assert not others
    plain = {"method": "full", "precision": "fp32", "attention": "eager", "checkpointing": "none", "padding": "max"}
    assert plain.items() <= cells[baseline].items()
    asked = [axes for axes in cells.values() if axes["workload"] == workload]
    sizes = {(axes["micro_batch_size"], axes["gpus"], axes["num_accumulation_steps"]) for axes in asked}
    assert len(asked) > 8 and len(sizes) == 1
    assert sweep.targets.throughput is not None and sweep.targets.throughput.at_least == 2.0
    assert sweep.targets.peak_memory is not None and sweep.targets.peak_memory.at_most == 0.5


@pytest.mark.parametrize("name", SUITE)
def test_the_rehearsal_plans_here(name: str, tmp_path: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "rehearse.py")]
    done = subprocess.run(
        [*script, str(BENCHMARKS / f"{name}.yaml"), str(tmp_path)], capture_output=True, text=True, check=True
    )
    sweep = plan(load_matrix(Path(done.stdout.strip())))
    real = plan(load_matrix(BENCHMARKS / f"{name}.yaml"))
    assert sweep.site.device == "cpu" and len(sweep.cells) == len(real.cells)
    assert len(sweep.runnable()) > len(sweep.cells) / 2
    assert all(because.startswith(FOR_GPUS) for because in dropped(sweep)), dropped(sweep)


def test_the_script_knows_its_parts() -> None:
    script = BENCHMARKS / "h200.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "tests, sweep, peer or keep" in done.stderr
    stages = yaml.safe_load((BENCHMARKS / "gpu_suite.yaml").read_text())["workloads"]
    assert all(name in script.read_text() for name in (*stages, *SUITE))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_rehearsed_call_brings_its_records_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    settings = {"REHEARSE": "1", "OUT": str(out), "TOP": str(tmp_path / "top"), "BUDGET_S": "100"}
    script = ["bash", str(BENCHMARKS / "h200.sh"), "sweep"]
    done = subprocess.run(script, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(out / "results.tar.gz") as archive:
        found = [name for name in archive.getnames() if name.endswith("/outcome.json")]
        outcomes = [json.load(file) for name in found if (file := archive.extractfile(name)) is not None]
    assert any(one["outcome"] == "ok" for one in outcomes)
    assert {one["outcome"] for one in outcomes} <= {"ok", "cancelled"}
    assert list((tmp_path / "top" / "runs" / ".cache").glob("*.npy"))  # the next call reads it
