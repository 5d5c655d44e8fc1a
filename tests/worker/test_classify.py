"""Exceptions become outcomes by their type."""

from __future__ import annotations

import errno

import pytest
import torch

from egobench.errors import EnvironmentProblem
from egobench.records.outcome import PHASES
from egobench.records.pulse import PulseReading
from egobench.train.errors import Diverged
from egobench.worker.classify import classify, describe, is_echo, is_environment, requested_bytes

CUDA = (
    "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 79.15 GiB of which 5 GiB is free."
)


def test_the_real_cpu_allocator_refuses() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    error = caught.value
    assert classify(error, on_gpu=False) == "oom"
    assert classify(error, on_gpu=True) == "host_oom"
    where = PulseReading(5, 1, PHASES[3], 7, 0, 0)
    failure = describe(error, 1, where, "oom", on_gpu=False)
    assert (failure.rank, failure.phase, failure.step, failure.requested_bytes) == (1, "forward", 7, 2**60)


def test_cuda() -> None:
    assert classify(torch.cuda.OutOfMemoryError(CUDA), on_gpu=True) == "oom"
    assert requested_bytes(CUDA) == 20.5 * 2**30
    assert classify(RuntimeError("CUDA error: device-side assert triggered"), on_gpu=True) == "crash"


def test_the_rest() -> None:
    assert classify(MemoryError(), on_gpu=False) == "host_oom"
    assert classify(Diverged(3, "loss"), on_gpu=False) == "diverged"
    assert classify(KeyboardInterrupt(), on_gpu=False) == "cancelled"
    assert classify(ValueError("DefaultCPUAllocator: can't allocate memory"), on_gpu=False) == "crash"


def test_environment() -> None:
    assert is_environment(OSError(errno.ENOSPC, "No space left on device"))
    assert is_environment(EnvironmentProblem("full"))
    assert not is_environment(FileNotFoundError(errno.ENOENT, "no"))


def test_echo() -> None:
    lost = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")
    assert is_echo(lost, num_ranks=2)
    assert not is_echo(lost, num_ranks=1)
    assert is_echo(Diverged(1, "gradient norm"), num_ranks=2)
    assert not is_echo(Diverged(1, "loss"), num_ranks=2)
    assert not is_echo(RuntimeError("shapes do not match"), num_ranks=2)
