"""Where the time of a step goes, without synchronising the device.

A clock is told when a phase begins; the time up to the next such moment belongs to that phase, so the parts
of a step always add up to the step. A step begins where the one before it ended: nothing between them is lost,
only what `restart` cuts out (evaluation). On CUDA a moment is an event on the compute stream, read only once
the device has passed it; on CPU it is `time.perf_counter`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from egobench.records.outcome import Phase


class Moment(Protocol):
    """A point in time that may still lie in the device's future."""

    def is_past(self) -> bool:
        """Return whether `seconds_since` can be asked without waiting."""

    def seconds_since(self, earlier: Moment) -> float:
        """Return the time between two moments of one clock."""

    def wait(self) -> None:
        """Block until the device has passed the moment."""


class CpuMoment:
    """A moment of the CPU's monotonic clock."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = time.perf_counter()

    def is_past(self) -> bool:
        return True

    def seconds_since(self, earlier: Moment) -> float:
        assert isinstance(earlier, CpuMoment)
        return self.at - earlier.at

    def wait(self) -> None:
        """Return at once: work on a CPU is done when the call returns."""


class CudaMoment:
    """An event recorded on the current stream."""

    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.event.record()

    def is_past(self) -> bool:
        return bool(self.event.query())

    def seconds_since(self, earlier: Moment) -> float:
        assert isinstance(earlier, CudaMoment)
        return float(earlier.event.elapsed_time(self.event)) / 1e3

    def wait(self) -> None:
        self.event.synchronize()


class Lap:
    """The moments of one step, readable once `end` is past."""

    __slots__ = ("end", "marks")

    def __init__(self, marks: list[tuple[Phase, Moment]], end: Moment) -> None:
        self.marks, self.end = marks, end

    def step_time_s(self) -> float:
        """Return the time of the whole step."""
        return self.end.seconds_since(self.marks[0][1])

    def split(self) -> dict[Phase, float]:
        """Return the seconds of each phase that the step had; they sum to the step's time."""
        seconds: dict[Phase, float] = {}
        for (phase, begin), end in zip(self.marks, self._ends(), strict=True):
            seconds[phase] = seconds.get(phase, 0.0) + end.seconds_since(begin)
        return seconds

    def _ends(self) -> Iterator[Moment]:
        for _, moment in self.marks[1:]:
            yield moment
        yield self.end


class PhaseClock:
    """Marks the phases of steps on one device."""

    def __init__(self, device: torch.device) -> None:
        self._moment: type[CpuMoment] | type[CudaMoment] = CudaMoment if device.type == "cuda" else CpuMoment
        self._marks: list[tuple[Phase, Moment]] = []
        self.watch: Callable[[Phase], None] | None = None
        """Told of every phase of every step that is measured, when it has begun."""

    def restart(self) -> None:
        """Begin the next step now: what happened since the last one belongs to no step."""
        self._marks = [("data", self._moment())]

    def enter(self, phase: Phase) -> None:
        """Note that a phase begins."""
        self._marks.append((phase, self._moment()))
        if self.watch is not None:
            self.watch(phase)

    def lap(self) -> Lap:
        """End the step; the next one begins at the same moment, with its data phase."""
        end = self._moment()
        marks, self._marks = self._marks, [("data", end)]
        return Lap(marks, end)


class NullClock:
    """Measures nothing: what the loop is compared with to learn what measuring costs."""

    def restart(self) -> None:
        """Do nothing."""

    def enter(self, phase: Phase) -> None:
        """Do nothing."""

    def lap(self) -> None:
        """Return no lap."""


Clock = PhaseClock | NullClock
