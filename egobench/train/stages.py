"""Where the rank is right now: told once, heard by the pulse, the clock and the drill."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from egobench.probes.clock import Clock
from egobench.records.outcome import Phase


class Pulse(Protocol):
    """What the launcher watches from outside (`egobench.probes.pulse.Pulse`)."""

    def mark(self, phase: Phase, step: int) -> None:
        """Note phase and step; cheap enough for every phase of every step."""


class Stages:
    """Announces every change of phase."""

    def __init__(self, pulse: Pulse, clock: Clock, drill: Callable[[Phase, int], None] | None = None) -> None:
        self.clock = clock
        self.step = -1
        self.began_at = time.time()
        self.outside_s: dict[Phase, float] = {}
        """Seconds in each phase that belongs to no step, so far."""
        self.listener: Callable[[Phase], None] | None = None
        """Also told of every phase of a step; set while a profiler watches."""
        self._outside: tuple[Phase, float] | None = None
        self._is_rehearsing = False
        self._pulse, self._drill = pulse, drill

    def enter(self, phase: Phase) -> None:
        """Enter a phase of the current step."""
        if self._is_rehearsing:
            self._pulse.mark(phase, self.step)
            return
        if self._outside is not None:
            self._leave()
        self._pulse.mark(phase, self.step)
        self.clock.enter(phase)
        if self._drill is not None:
            self._drill(phase, self.step)
        if self.listener is not None:
            self.listener(phase)

    @contextlib.contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Have the phases that are entered inside belong to no step; only the pulse hears of them."""
        self._is_rehearsing = True
        try:
            yield
        finally:
            self._is_rehearsing = False

    def outside(self, phase: Phase) -> None:
        """Enter a phase that belongs to no step: loading, evaluation, saving, the end."""
        self._leave()
        self._outside = (phase, time.perf_counter())
        self._pulse.mark(phase, self.step)
        if self._drill is not None:
            self._drill(phase, self.step)

    def _leave(self) -> None:
        if self._outside is not None:
            phase, since_s = self._outside
            self.outside_s[phase] = self.outside_s.get(phase, 0.0) + time.perf_counter() - since_s
            self._outside = None
