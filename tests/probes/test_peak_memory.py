from __future__ import annotations

import numpy as np
import pytest
import torch

from egobench.probes.memory import CpuMemory, memory_probe

MIB = 2**20


def test_growth_counts_from_the_moment_the_probe_is_made() -> None:
    held = np.ones(64 * MIB, dtype=np.uint8)  # before: does not count
    probe = memory_probe(torch.device("cpu"))
    assert isinstance(probe, CpuMemory)
    assert probe.peak().allocated_bytes < 32 * MIB
    block = np.ones(100 * MIB, dtype=np.uint8)
    del block
    assert 90 * MIB < probe.peak().allocated_bytes < 160 * MIB  # the peak stays when the block is gone
    assert probe.peak().reserved_bytes is None
    assert held.nbytes


def test_reset_forgets_the_peak() -> None:
    probe = memory_probe(torch.device("cpu"))
    block = np.ones(100 * MIB, dtype=np.uint8)
    del block
    before = probe.peak().allocated_bytes
    probe.reset()
    assert probe.peak().allocated_bytes < before - 60 * MIB


@pytest.mark.gpu
def test_cuda_peaks_are_the_allocators() -> None:
    device = torch.device("cuda", 0)
    probe = memory_probe(device)
    base = torch.cuda.memory_allocated(device)
    block = torch.empty(256 * MIB, dtype=torch.uint8, device=device)
    del block
    peak = probe.peak()
    assert peak.allocated_bytes == torch.cuda.max_memory_allocated(device) == base + 256 * MIB
    assert peak.reserved_bytes == torch.cuda.max_memory_reserved(device)
    probe.reset()
    assert probe.peak().allocated_bytes == base
