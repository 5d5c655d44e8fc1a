"""`ranks/<r>.pulse`: where a rank is right now, in 64 bytes. Written by `egobench/probes/pulse.py`, read by anybody."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from egobench.records.outcome import PHASES, Phase

SIZE: Final = 64
LAYOUT: Final = struct.Struct("<QqqqddQ")
"""counter, pid, phase, step, monotonic time, Unix time, magic."""
MAGIC: Final = 0x3145534C55504745  # "EGPULSE1"


@dataclass(frozen=True)
class PulseReading:
    """One look at a rank's pulse."""

    counter: int
    """Marks made so far; it stands still when the rank does."""
    pid: int
    phase: Phase
    step: int
    """-1 before the first step."""
    monotonic_s: float
    """Of the last mark; comparable on the same machine only."""
    at: float
    """Unix time of the last mark, s."""


def read_pulse(path: Path) -> PulseReading | None:
    """Read a rank's pulse; None where there is none yet."""
    return decode_pulse(_stable_bytes(path))


def decode_pulse(raw: bytes) -> PulseReading | None:
    """Read the 64 bytes; None where they are something else."""
    if len(raw) != SIZE:
        return None
    counter, pid, phase, step, monotonic_s, at, magic = LAYOUT.unpack_from(raw)
    if magic != MAGIC or not 0 <= phase < len(PHASES):
        return None
    return PulseReading(counter, pid, PHASES[phase], step, monotonic_s, at)


def _stable_bytes(path: Path) -> bytes:
    # Two equal looks in a row: no mark was being written in between.
    last = b""
    for _ in range(5):
        try:
            raw = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return b""
        if raw == last:
            return raw
        last = raw
    return last
