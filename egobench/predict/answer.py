"""What a prediction says: bytes and seconds by part, so that every sum can be read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

from egobench.records.predicted import VerdictName


@dataclass(frozen=True)
class Bytes:
    """One thing that takes memory."""

    name: str
    num_bytes: float
    formula: str = ""
    """How the number comes about, in words and figures."""


@dataclass(frozen=True)
class Phase:
    """A moment that may be the peak."""

    name: str
    """`forward`, `loss`, `head`, `backward`, `backward_end`, `tower`, `optimizer`."""
    parts: tuple[Bytes, ...]

    @property
    def total_bytes(self) -> float:
        """Return what is allocated at that moment."""
        return sum(part.num_bytes for part in self.parts)


@dataclass(frozen=True)
class Memory:
    """The peak memory of a rank."""

    allocated_bytes: float
    """The predicted counterpart of max_memory_allocated."""
    reserved_low_bytes: float
    """Allocated and what is outside the allocator: below it nothing runs."""
    reserved_high_bytes: float
    """With the fragmentation that is usual."""
    usable_bytes: float
    """Of the GPU."""
    detail: Callable[[], tuple[Phase, ...]] = field(repr=False, compare=False)
    """Makes the phases: a plan of many cells asks for few of them."""

    @functools.cached_property
    def phases(self) -> tuple[Phase, ...]:
        """Return every moment that may be the peak, with its parts."""
        return self.detail()

    @functools.cached_property
    def peak(self) -> Phase:
        """Return the moment of the peak."""
        return max(self.phases, key=lambda phase: phase.total_bytes)

    @property
    def verdict(self) -> VerdictName:
        """Tell whether it fits: only what cannot fit even without fragmentation is an out-of-memory."""
        if self.reserved_low_bytes > self.usable_bytes:
            return "predicted_oom"
        return "risky" if self.reserved_high_bytes > self.usable_bytes else "fits"


@dataclass(frozen=True)
class Seconds:
    """One thing that takes time in an update."""

    name: str
    time_s: float
    formula: str = ""
    """How the number comes about, in words and figures."""


@dataclass(frozen=True)
class Time:
    """The time of one update."""

    step_time_s: float
    """The predicted counterpart of the record's step_time_s."""
    num_real_tokens: float
    """Of one update over all ranks, without padding."""
    detail: Callable[[], tuple[Seconds, ...]] = field(repr=False, compare=False)
    """Makes the parts: a plan of many cells asks for few of them."""

    @functools.cached_property
    def parts(self) -> tuple[Seconds, ...]:
        """Return what takes the time; they add up to the step."""
        return self.detail()

    @property
    def tokens_per_s(self) -> float:
        """Return effective tokens over all ranks."""
        return self.num_real_tokens / self.step_time_s
