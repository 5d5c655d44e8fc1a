"""Peak memory of a rank: what torch's allocator saw on a GPU, growth of the resident set on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch


@dataclass(frozen=True)
class Peak:
    """Peak memory since the last reset."""

    allocated_bytes: int
    """CUDA: max_memory_allocated. CPU: peak resident set minus the resident set before the model was built."""
    reserved_bytes: int | None
    """CUDA: max_memory_reserved."""


class MemoryProbe(Protocol):
    """The peak of one device; made before the model is built."""

    def reset(self) -> None:
        """Forget the peak so far."""

    def peak(self) -> Peak:
        """Return the peak since the last reset."""


def memory_probe(device: torch.device) -> MemoryProbe:
    """Return the probe of a device; call it before the model is built."""
    return CudaMemory(device) if device.type == "cuda" else CpuMemory()


class CudaMemory:
    """Reads torch's caching allocator; costs no synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.reset()

    def reset(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> Peak:
        stats = torch.cuda.memory_stats_as_nested_dict(self._device)
        if not stats:
            return Peak(0, 0)
        return Peak(stats["allocated_bytes"]["all"]["peak"], stats["reserved_bytes"]["all"]["peak"])


class CpuMemory:
    """Reads VmHWM of /proc/self/status, which the kernel lets a process reset (clear_refs, 5)."""

    def __init__(self) -> None:
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._reset_peak()
        self._baseline_bytes = self._read(b"VmRSS:")

    def reset(self) -> None:
        # Garbage and freed blocks that malloc still holds would count towards the next peak.
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self._reset_peak()

    def peak(self) -> Peak:
        return Peak(max(0, self._read(b"VmHWM:") - self._baseline_bytes), None)

    def _reset_peak(self) -> None:
        # Not allowed in some containers: the peak is then that of the process's whole life.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def _read(self, key: bytes) -> int:
        status = os.pread(self._status, 4096, 0)
        start = status.index(key) + len(key)
        return int(status[start : status.index(b"kB", start)]) * 1024

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._status)
