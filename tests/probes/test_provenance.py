from __future__ import annotations

import time
from importlib.metadata import version

import pytest
import torch

from egobench.probes import provenance

CPU = torch.device("cpu")


def test_only_listed_variables_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JWT", "do-not-keep-me")
    monkeypatch.setenv("HF_TOKEN", "do-not-keep-me")
    record = provenance.capture(CPU, 1, num_train=3)
    assert record.slurm["SLURM_JOB_ID"] == "17"
    assert record.num_train == 3
    assert "do-not-keep-me" not in record.model_dump_json()


def test_describes_this_machine() -> None:
    record = provenance.capture(CPU, 1)
    assert record.packages["torch"] == version("torch")
    assert record.num_cpus >= 1
    assert record.memory_bytes > 2**30
    assert record.cpu
    assert record.gpus == ()
    assert record.cuda is None
    assert len(record.code_digest) == 64


def test_a_warm_rank_captures_quickly() -> None:
    provenance.capture(CPU, 1)
    spent = []
    for _ in range(3):
        began = time.process_time()
        provenance.capture(CPU, 1)
        spent.append(time.process_time() - began)
    assert min(spent) < 0.05


@pytest.mark.gpu
def test_describes_the_gpu() -> None:
    record = provenance.capture(torch.device("cuda", 0), 1)
    assert record.gpus[0].memory_bytes > 2**30
    assert record.gpus[0].driver
    assert record.gpus[0].uuid
    assert record.cuda
