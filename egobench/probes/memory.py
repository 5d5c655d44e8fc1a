"""Peak memory of a rank, and what it consists of: torch's allocator on a GPU, the resident set on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from egobench.records.measures import MemorySplit
from egobench.records.outcome import Phase


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


@dataclass(frozen=True)
class Held:
    """Tensors that a rank keeps from step to step; of one that is spread over ranks, its own part."""

    parameters: list[torch.Tensor]
    gradients: list[torch.Tensor]
    """Empty between an update and the next backward pass."""
    optimizer: list[torch.Tensor]
    """States, and master weights where it updates others than the model's."""


def held_by(strategy: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> Held:
    """Return what a rank holds; a strategy that keeps tensors elsewhere has a method `held_tensors() -> Held`."""
    own: Callable[[], Held] | None = getattr(strategy, "held_tensors", None)
    return own() if own is not None else held_in(model, optimizer)


def held_in(model: nn.Module, optimizer: torch.optim.Optimizer) -> Held:
    """Return the tensors that a model and an optimizer own."""
    parameters = list(model.parameters())
    # What is updated is the model's own, which counts once, or a strategy's master weights.
    listed = [one for group in optimizer.param_groups for one in group["params"]]
    updated = list(dict.fromkeys([*listed, *(one for one in optimizer.state if isinstance(one, torch.Tensor))]))
    gradients = [one.grad for one in (*parameters, *updated) if one.grad is not None]
    return Held([*parameters, *model.buffers()], gradients, [*_tensors(list(optimizer.state.values())), *updated])


def _tensors(thing: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors anywhere in lists and mappings."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, dict | list | tuple):
        for inner in thing.values() if isinstance(thing, dict) else thing:
            yield from _tensors(inner)


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensors with memory of their own that one consists of."""
    if hasattr(tensor, "__tensor_flatten__"):  # DTensor: this rank's part; torchao: codes and scales
        inner = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        for one in inner:
            if isinstance(one, torch.Tensor):
                yield from plain_tensors(one)
        return
    yield tensor
    for state in (getattr(tensor, "quant_state", None), getattr(getattr(tensor, "quant_state", None), "state2", None)):
        if state is not None:  # bitsandbytes: scales of 4-bit weights
            yield from _tensors(list(vars(state).values()))


class _Census:
    """Counts every piece of memory once, for whatever asks first."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._seen = device, set[tuple[torch.device, int]]()
        self.host_bytes = 0

    def count(self, tensors: Iterable[torch.Tensor]) -> int:
        """Return the bytes on the device that have not been counted yet."""
        total = 0
        for tensor in (plain for one in tensors for plain in plain_tensors(one)):
            storage = tensor.untyped_storage()
            place = (tensor.device, storage.data_ptr())
            if tensor.device.type == "meta" or place in self._seen:
                continue
            self._seen.add(place)
            # bitsandbytes' paged states live where the driver puts them, outside of the allocator.
            if tensor.device.type != self._device.type or getattr(tensor, "is_paged", False):
                self.host_bytes += storage.nbytes()
            else:
                total += storage.nbytes()
        return total


class SplitProbe:
    """Measures what the peak of a rank consists of, told of every phase; costs no synchronisation."""

    def __init__(self, device: torch.device, held: Callable[[], Held]) -> None:
        self._device, self._held = device, held
        self._now: Callable[[], int] = _cuda_now(device) if device.type == "cuda" else _Resident()
        self._before_forward = self._activations = 0
        self._gradients: int | None = None

    def enter(self, phase: Phase) -> None:
        """Take note that a phase of a step begins."""
        if phase == "forward":
            self._before_forward = self._now()
        elif phase == "backward":
            self._activations = max(self._activations, self._now() - self._before_forward)
        elif phase == "optimizer" and self._gradients is None:
            # Before the first update, and once: they are the same in every step.
            held, census = self._held(), _Census(self._device)
            census.count(held.parameters)
            self._gradients = census.count(held.gradients)

    def split(self, peak_bytes: int) -> MemorySplit | None:
        """Return the parts of a peak; None before the first update.

        They sum to the peak. Each is what it is at its own worst moment, and those are not the same: most gradients
        come when activations have gone. So parts are given room in this order: parameters, optimizer, activations,
        gradients; where they exceed the peak, the last ones get what is left, which is what of them was there with
        the others at the peak. On a CPU activations are what the resident set grows by, which is less where the
        process reuses memory that it got before.
        """
        if self._gradients is None:
            return None
        held, census = self._held(), _Census(self._device)
        parts = [census.count(held.parameters), census.count(held.optimizer), self._activations, self._gradients]
        room = peak_bytes
        for place, part in enumerate(parts):
            parts[place] = min(part, room)
            room -= parts[place]
        return MemorySplit(
            parameters_bytes=parts[0],
            gradients_bytes=parts[3],
            optimizer_bytes=parts[1],
            activations_bytes=parts[2],
            other_bytes=room,
            host_bytes=census.host_bytes,
        )


def _cuda_now(device: torch.device) -> Callable[[], int]:
    def now() -> int:
        stats = torch.cuda.memory_stats_as_nested_dict(device)
        return int(stats["allocated_bytes"]["all"]["current"]) if stats else 0

    return now


class _Resident:
    """Reads the resident set of this process."""

    def __init__(self) -> None:
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._statm = os.open("/proc/self/statm", os.O_RDONLY)

    def __call__(self) -> int:
        return int(os.pread(self._statm, 128, 0).split()[1]) * self._page_bytes

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._statm)
