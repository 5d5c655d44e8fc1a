from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from synthetic import write_allocation, write_attempt, write_sweep

from egobench.records.allocation import Ended
from egobench.records.outcome import OutcomeName
from egobench.records.store import SweepPaths
from egobench.records.sweep import Sweep


def mixed_fate(axes: Mapping[str, Any], trial: int) -> tuple[OutcomeName, str]:
    big = axes["checkpointing"] == "none" and axes["micro_batch_size"] == 32
    if big and axes["precision"] == "fp32" and axes["gpus"] == 1:
        return "oom", "CUDA out of memory <script>alert(1)</script> in /home/somebody/work/train.py"
    if axes["precision"] == "bf16" and axes["attention"] == "eager" and axes["gpus"] == 8 and trial == 2:
        return "hang", "rank 3 made no progress for 20 s"
    return "ok", ""


def no_flash_in_fp32(axes: Mapping[str, Any]) -> tuple[OutcomeName, str]:
    if axes["attention"] == "sdpa_flash" and axes["precision"] == "fp32":
        return "incompatible", "flash kernels need fp16 or bf16"
    return "pending", ""


@pytest.fixture(scope="session")
def mixed_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 48 cells with ok, oom, hang and incompatible ones, run by 14 allocations."""
    varied = {
        "precision": ["fp32", "bf16"],
        "attention": ["sdpa", "eager", "sdpa_flash"],
        "checkpointing": ["none", "full"],
        "gpus": [1, 8],
        "micro_batch_size": [8, 32],
    }
    folder = write_sweep(tmp_path_factory.mktemp("runs"), varied, name="mixed", fate=mixed_fate, plan=no_flash_in_fp32)
    run_it(folder)
    return folder


KILLED = "job 4711_3 on somebodys-node lost a node (Slurm: NODE_FAIL; restarted once)"


def run_it(folder: Path) -> None:
    """Write the allocations of the sweep: 13 ended by themselves, one by Slurm, and a trial that was launched again."""
    for number in range(1, 14):
        useful = {"measured_s": 900.0 - 50 * number, "warmup_s": 40.0, "evaluation_s": 30.0, "startup_s": 60.0}
        span = useful | {"lost_s": 20.0 * (number % 3), "idle_s": 3.0}
        write_allocation(folder, number, [span], ended=Ended(exit_code=0, at=1.79e9 + sum(span.values())))
    ended = Ended(exit_code=1, state="NODE_FAIL", because=KILLED, elapsed_s=1500.0, at=1.79e9 + 9000)
    spans = [{"measured_s": 800.0, "startup_s": 100.0}, {"startup_s": 50.0}]
    write_allocation(folder, 14, spans, num_nodes=2, ended=ended, nodes=("somebodys-node", "somebodys-other"))
    sweep = Sweep.model_validate_json((folder / "sweep.json").read_text())
    write_attempt(SweepPaths(folder).trial(sweep.runnable()[0].cell_id, 1), 1, "node_fail", KILLED, allocation=14)
