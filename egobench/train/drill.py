"""Rehearse a failure for real, at the rank, step and phase that a cell asks for."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import nn

from egobench.records.outcome import Phase
from egobench.records.trial import Drill
from egobench.train.rank import Rank


class DrillError(RuntimeError):
    """The exception that a `raise` drill raises."""


class Rehearsal:
    """Called at every change of phase; strikes once, when rank, step and phase are those of the drill."""

    def __init__(self, drill: Drill, rank: Rank, quiet_limit_s: float) -> None:
        self._drill, self._rank = drill, rank
        self._slow_s = 1.25 * quiet_limit_s
        self._has_struck = False
        self.model: nn.Module | None = None
        """Set once it is built; a `nan` drill before that has nothing to poison."""

    def __call__(self, phase: Phase, step: int) -> None:
        """Strike if this is the moment."""
        drill = self._drill
        if self._has_struck or (self._rank.rank, step, phase) != (drill.rank, drill.step, drill.phase):
            return
        self._has_struck = True
        strike: dict[str, Callable[[], None]] = {
            "oom": self._oom, "host_oom": _host_oom, "nan": self._nan, "hang": _hang,
            "sigkill": _sigkill, "raise": _raise, "slow": self._slow,
        }  # fmt: skip
        strike[drill.kind]()

    def _oom(self) -> None:
        # More than any device has: the allocator's own error, in its own words.
        if self._rank.device.type == "cuda":
            size = 4 * torch.cuda.get_device_properties(self._rank.device).total_memory
            torch.empty(size, dtype=torch.uint8, device=self._rank.device)
        else:
            torch.empty(2**60, dtype=torch.uint8)

    def _nan(self) -> None:
        if self.model is not None:
            with torch.no_grad():
                next(p for p in self.model.parameters() if p.requires_grad).fill_(float("nan"))

    def _slow(self) -> None:
        # Busy for longer than the launcher lets a quiet rank live: it must not be taken for a hang.
        end = time.monotonic() + self._slow_s
        while time.monotonic() < end:
            sum(range(10_000))


def _host_oom() -> None:
    # A limit just above what is mapped now makes the next large allocation fail as it does on a full host.
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as stream:
        mapped = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**26, hard))
    try:
        bytearray(2**30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _hang() -> NoReturn:
    while True:
        time.sleep(3600)


def _sigkill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise() -> NoReturn:
    raise DrillError("drill: this rank was asked to raise")
