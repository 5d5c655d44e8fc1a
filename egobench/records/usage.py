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
    """Steps of the steady state, in trials that ended ok, or before the checkpoint of an interrupted one."""
    warmup_s: float = 0.0
    """Steps before the steady state."""
    evaluation_s: float = 0.0
    startup_s: float = 0.0
    """Imports, launches of ranks, loading of data and model."""
    lost_s: float = 0.0
    """Trials that did not end ok, without what the next attempt goes on from."""
    idle_s: float = 0.0
    """The rest: between trials, and on the way out."""
    num_trials: int = 0
    """Trials that were run."""
    whole: bool = False
    """It was written on the way out. Else the start went on, for nobody knows how long, after this was written."""

    @property
    def total_s(self) -> float:
        return self.measured_s + self.warmup_s + self.evaluation_s + self.startup_s + self.lost_s + self.idle_s


def end_of_last_start(
    ended_at: float, from_outside: bool, elapsed_s: float | None, ends_at: float | None
) -> float | None:
    """Return when an allocation's last start ended, Unix time; None where Slurm's accounting tells better.

    Args:
        ended_at: What its end says of the time, s.
        from_outside: It was Slurm that told the end.
        elapsed_s: Of all its starts together, by Slurm's accounting.
        ends_at: When the time limit or the budget was to end that start, s.
    """
    if not from_outside:
        return ended_at
    if elapsed_s is not None:
        return None
    # Whoever found out that Slurm had ended it may have come hours later, but it had a time limit.
    return min(ended_at, ends_at or ended_at)


class Usage(Record):
    """All starts of an allocation; rewritten before and after each trial, so that much is known of a killed one."""

    schema_version: Literal[1] = 1
    num_gpus: int
    spans: tuple[Span, ...] = ()
