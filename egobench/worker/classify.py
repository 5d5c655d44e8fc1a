"""Which outcome an exception stands for, by its type; texts give numbers, and decide where types are too coarse."""

from __future__ import annotations

import errno
import re
import traceback
from typing import Final

import psutil
import torch
import torch.distributed as dist

from egobench.errors import EnvironmentProblem
from egobench.probes.pulse import PulseReading
from egobench.records.outcome import Failure, OutcomeName
from egobench.train.errors import Diverged

_UNITS: Final = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_CPU_REFUSAL: Final = "DefaultCPUAllocator: can't allocate memory"
# gloo throws a plain RuntimeError; these are what gloo/transport/tcp/pair.cc says when the other side is gone.
_PEER_GONE: Final = re.compile(r"Connection closed by peer|Connection reset by peer|Broken pipe|Socket closed")
_CUDA_OUT_OF_MEMORY: Final = re.compile(r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|Cuda failure 2")


def classify(error: BaseException, on_gpu: bool) -> OutcomeName:
    """Return the outcome that an exception of a rank means for the trial."""
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, KeyboardInterrupt):
        return "cancelled"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "oom"
    if isinstance(error, MemoryError):
        return "host_oom"
    if isinstance(error, RuntimeError):
        text = str(error)
        if _CPU_REFUSAL in text:
            # On a CPU site the host's memory is the device's memory.
            return "host_oom" if on_gpu else "oom"
        if on_gpu and _CUDA_OUT_OF_MEMORY.search(text):
            return "oom"
    return "crash"


def is_environment(error: BaseException) -> bool:
    """Return whether the machine is to blame, so that the trial says nothing about its cell."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, EnvironmentProblem)


def is_echo(error: BaseException, num_ranks: int) -> bool:
    """Return whether the failure is most likely the consequence of another rank's."""
    if num_ranks == 1:
        return False
    if isinstance(error, Diverged):
        # The loss is a rank's own; the gradient is everybody's.
        return error.what != "loss"
    if isinstance(error, dist.DistError):
        return _CUDA_OUT_OF_MEMORY.search(str(error)) is None
    return isinstance(error, (RuntimeError, ConnectionError)) and _PEER_GONE.search(str(error)) is not None


def describe(error: BaseException, rank: int, where: PulseReading, outcome: OutcomeName, on_gpu: bool) -> Failure:
    """Write down what failed, where, and for out-of-memory how much was asked for and how much there was."""
    text = str(error)
    out_of_memory = outcome in ("oom", "host_oom")
    return Failure(
        rank=rank,
        phase=where.phase,
        step=where.step,
        message=f"{type(error).__name__}: {text}" if text else type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
        requested_bytes=requested_bytes(text) if out_of_memory else None,
        free_bytes=_free_bytes(on_gpu and outcome == "oom") if out_of_memory else None,
    )


def requested_bytes(text: str) -> int | None:
    """Read what an allocation asked for out of PyTorch's message (CUDA or CPU allocator)."""
    found = re.search(r"[Tt]ried to allocate ([\d.]+) ([KMGT]iB|bytes|B)", text)
    return round(float(found[1]) * _UNITS[found[2]]) if found else None


def _free_bytes(on_gpu: bool) -> int:
    if on_gpu:
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)
