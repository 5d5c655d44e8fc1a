from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from synthetic import write_sweep

from egobench.records.outcome import OutcomeName


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
    """A sweep of 48 cells with ok, oom, hang and incompatible ones."""
    varied = {
        "precision": ["fp32", "bf16"],
        "attention": ["sdpa", "eager", "sdpa_flash"],
        "checkpointing": ["none", "full"],
        "gpus": [1, 8],
        "micro_batch_size": [8, 32],
    }
    return write_sweep(tmp_path_factory.mktemp("runs"), varied, name="mixed", fate=mixed_fate, plan=no_flash_in_fp32)
