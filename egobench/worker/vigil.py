"""When a trial counts as hung, and which rank is to blame. Pure: readings in, judgement out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from egobench.probes.pulse import PulseReading
from egobench.records.outcome import PHASES, Phase
from egobench.worker.process import Usage

BUSY_CPU_SHARE: Final = 0.05
"""A rank that uses more of one core than this, or would if it were free, is at work."""
BUSY_IO_BYTES: Final = 2**20
BUSY_MAJOR_FAULTS: Final = 16
"""A rank that moves this much between two samples is at work."""
LONGEST_PHASE_FACTOR: Final = 20.0
"""Once steps run, a phase that lasts this many times longer than the longest so far is no longer believed."""
BUSY_PATIENCE: Final = 1.4
"""But a busy trial is given this many quiet limits at least."""
_LEARNING_STEPS: Final = 2
STEP_PHASES: Final[frozenset[Phase]] = frozenset({"data", "forward", "backward", "communication", "optimizer"})


@dataclass
class Vigil:
    """Judges the ranks of one trial; times are monotonic seconds."""

    quiet_limit_s: float
    stall_limit_s: float
    started_s: float
    _last: dict[int, PulseReading] = field(default_factory=dict)
    _seen_s: dict[int, float] = field(default_factory=dict)
    _progress_s: float = 0.0
    _quiet_since_s: float = 0.0
    _longest_phase_s: float = 0.0
    _usage: dict[int, Usage] = field(default_factory=dict)
    _sampled_s: float = 0.0

    def __post_init__(self) -> None:
        self._progress_s = self._quiet_since_s = self._sampled_s = self.started_s

    @property
    def sample_every_s(self) -> float:
        """Return how far apart `see_usage` wants its samples: long enough for the 10 ms ticks of CPU time."""
        return min(2.0, self.quiet_limit_s / 4)

    def see_pulses(self, readings: Mapping[int, PulseReading], now_s: float) -> None:
        """Take the pulses of all ranks that have one."""
        for rank, reading in readings.items():
            before = self._last.get(rank)
            if before is not None and before.counter == reading.counter:
                self._seen_s[rank] = now_s
                continue
            self._progress_s = self._quiet_since_s = now_s
            if before is not None and before.phase in STEP_PHASES:
                # Known to have lasted from its mark until we last saw it; looks are closer than any limit.
                self._longest_phase_s = max(self._longest_phase_s, self._seen_s[rank] - before.monotonic_s)
            self._last[rank], self._seen_s[rank] = reading, now_s

    def see_usage(self, usages: Mapping[int, Usage], now_s: float) -> None:
        """Take what the ranks' processes have used so far."""
        if any(self._was_busy(usage, self._usage.get(pid), now_s - self._sampled_s) for pid, usage in usages.items()):
            self._quiet_since_s = now_s
        self._usage = dict(usages)
        self._sampled_s = now_s

    @staticmethod
    def _was_busy(usage: Usage, before: Usage | None, elapsed_s: float) -> bool:
        if before is None:
            return True
        return (
            usage.state == "D"
            or usage.wanted_cpu_s - before.wanted_cpu_s > BUSY_CPU_SHARE * elapsed_s
            or usage.io_bytes - before.io_bytes > BUSY_IO_BYTES
            or usage.major_faults - before.major_faults > BUSY_MAJOR_FAULTS
        )

    def judge(self, now_s: float) -> str | None:
        """Return why the trial counts as hung; None while it does not."""
        if now_s - self._quiet_since_s > self.quiet_limit_s:
            return f"no progress, no CPU and no disk use for {now_s - self._quiet_since_s:.0f} s"
        stalled_s = now_s - self._progress_s
        if stalled_s > self.stall_limit_s:
            return f"busy, but no progress for {stalled_s:.0f} s"
        if stalled_s > BUSY_PATIENCE * self.quiet_limit_s and self._is_settled():
            longest_s = self._longest_phase_s
            if stalled_s > LONGEST_PHASE_FACTOR * longest_s:
                return f"busy, but no progress for {stalled_s:.0f} s; no phase took over {longest_s:.2g} s before"
        return None

    def _is_settled(self) -> bool:
        # Evaluation and saving may last long on one rank while the others wait inside a step.
        return bool(self._last) and all(
            reading.step >= _LEARNING_STEPS and reading.phase in STEP_PHASES for reading in self._last.values()
        )


def furthest_behind(readings: Mapping[int, PulseReading], waiting: frozenset[int] = frozenset()) -> int:
    """Return the rank to blame for a hang: the others wait for it.

    Args:
        readings: The last pulse of every rank that has one.
        waiting: Ranks whose stack shows that they wait inside the framework; they are to blame only if all are.
    """
    candidates = [rank for rank in readings if rank not in waiting] or list(readings)

    def progress(rank: int) -> tuple[int, int, float]:
        reading = readings[rank]
        return reading.step, PHASES.index(reading.phase), reading.monotonic_s

    first = min(progress(rank)[:2] for rank in readings)
    level = [rank for rank in candidates if progress(rank)[:2] == first] or list(readings)
    return min(level, key=progress)
