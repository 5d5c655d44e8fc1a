"""What the time of an allocation's GPUs went into: `allocations/<n>/usage.json`."""

from __future__ import annotations

from typing import Literal

from egobench.spec.strict import Record


class Span(Record):
    """Seconds of one start of an allocation; times `num_gpus` they are GPU-seconds. They sum to `total_s`."""

    start: int
    """Which start."""
    began_at: float
    """Unix time, s."""
    measured_s: float = 0.0
    """Steps of the steady state, in trials that ended ok."""
    warmup_s: float = 0.0
    """Steps before the steady state."""
    evaluation_s: float = 0.0
    startup_s: float = 0.0
    """Imports, launches of ranks, loading of data and model."""
    lost_s: float = 0.0
    """Trials that did not end ok."""
    idle_s: float = 0.0
    """The rest: between trials, and on the way out."""
    num_trials: int = 0
    """Trials that were run."""
    whole: bool = False
    """It was written on the way out. Else the start went on, for nobody knows how long, after this was written."""

    @property
    def total_s(self) -> float:
        return self.measured_s + self.warmup_s + self.evaluation_s + self.startup_s + self.lost_s + self.idle_s


class Usage(Record):
    """All starts of an allocation; rewritten before and after each trial, so that much is known of a killed one."""

    schema_version: Literal[1] = 1
    num_gpus: int
    spans: tuple[Span, ...] = ()
