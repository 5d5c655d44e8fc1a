"""Where a rank is right now: 64 memory-mapped bytes that outlive any kind of death of the rank."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from typing import Final

from egobench.records.outcome import PHASES, Phase
from egobench.records.pulse import LAYOUT, MAGIC, SIZE, PulseReading, decode_pulse, read_pulse
from egobench.records.store import disk_errors

__all__ = ["Pulse", "PulseReading", "read_pulse"]

_INDEX: Final[dict[str, int]] = {phase: index for index, phase in enumerate(PHASES)}


class Pulse:
    """The writing end, held by the rank."""

    def __init__(self, path: Path) -> None:
        """Create the file with its blocks.

        Raises:
            EnvironmentProblem: no space; found here, because a full disk under a mapped page would be a SIGBUS.
        """
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                os.write(descriptor, bytes(SIZE))
                self._memory = mmap.mmap(descriptor, SIZE)
            finally:
                os.close(descriptor)
        self._counter = 0
        self._pid = os.getpid()
        self.mark("launch", -1)

    def mark(self, phase: Phase, step: int) -> None:
        """Say that the rank now enters `phase` of `step`; a quarter of a microsecond, nothing that can block."""
        self._counter += 1
        LAYOUT.pack_into(
            self._memory, 0, self._counter, self._pid, _INDEX[phase], step, time.monotonic(), time.time(), MAGIC
        )

    def now(self) -> PulseReading:
        """Return the last mark."""
        reading = decode_pulse(bytes(self._memory))
        assert reading is not None  # the constructor made the first mark
        return reading
