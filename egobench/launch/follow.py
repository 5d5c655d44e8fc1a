"""Watches an allocation through its files alone, whoever started it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from egobench.launch.launchers import Started
from egobench.launch.progress import Observer
from egobench.launch.state import TrialState, estimate_s, read_trial
from egobench.records.allocation import AllocationPaths, Ended, TrialRef, is_settled
from egobench.records.lock import is_held
from egobench.records.store import SweepPaths, read_document
from egobench.records.sweep import PlannedCell, Sweep

LOOK_EVERY_S: Final = 0.25
FULL_LOOK_EVERY: Final = 40
NEAR: Final = 8
"""Trials looked at every time; all of them, on a slow file system, only every so many looks."""


@dataclass(frozen=True)
class End:
    """How an allocation ended, as far as its files or its process tell."""

    exit_code: int | None
    """None: it vanished without a word."""
    because: str = ""


class Follower:
    """Tells an observer about the trials that the user asked for, while allocations come and go."""

    def __init__(self, sweep: Sweep, paths: SweepPaths, asked: Sequence[TrialRef], observer: Observer) -> None:
        self._paths, self._observer = paths, observer
        self._cells: dict[str, PlannedCell] = {cell.cell_id: cell for cell in sweep.cells}
        self._asked = list(asked)
        self._states: dict[TrialRef, TrialState] = {}
        self._running: set[TrialRef] = set()

    @property
    def states(self) -> list[TrialState]:
        """Look at every trial asked for."""
        return [self._read(ref) for ref in self._asked]

    def missing(self) -> list[TrialRef]:
        """Return the trials that still need to run."""
        return [ref for ref in self._asked if not is_settled(self._paths, ref)]

    def follow(self, allocation: AllocationPaths, started: Started | None) -> End:
        """Watch until the allocation is over."""
        looks = 0
        while True:
            over = self._is_over(allocation, started)  # before the last look, so that nothing is missed
            self.look(everything=over or looks % FULL_LOOK_EVERY == 0)
            if over:
                return self._end(allocation, started)
            looks += 1
            time.sleep(LOOK_EVERY_S)

    def look(self, everything: bool = True) -> None:
        """Look at the trials that have not ended yet; not everything: at those whose turn it is."""
        waiting = [ref for ref in self._asked if not self._is_done(ref)]
        near = waiting if everything else [*waiting[:NEAR], *(ref for ref in waiting[NEAR:] if ref in self._running)]
        for ref in near:
            self._states[ref] = state = self._read(ref)
            if self._is_done(ref):
                self._running.discard(ref)
                self._observer.changed(state)
            elif state.outcome == "running" and ref not in self._running:
                self._running.add(ref)
                self._observer.changed(state)
        self._tick()

    def _is_done(self, ref: TrialRef) -> bool:
        state = self._states.get(ref)
        return state is not None and state.document is not None and state.document.attempt >= ref.attempt

    def _tick(self) -> None:
        states = [self._states[ref] for ref in self._asked if ref in self._states]
        running = [state for state in states if state.outcome == "running"]
        done = sum(map(self._is_done, self._asked))
        self._observer.tick(running, done, len(self._asked), estimate_s(states, time.time()))

    def _read(self, ref: TrialRef) -> TrialState:
        return read_trial(self._cells[ref.cell_id], ref.trial, self._paths.trial(ref.cell_id, ref.trial))

    @staticmethod
    def _is_over(allocation: AllocationPaths, started: Started | None) -> bool:
        return started.exit_code() is not None if started is not None else not is_held(allocation.lock)

    @staticmethod
    def _end(allocation: AllocationPaths, started: Started | None) -> End:
        ended = read_document(allocation.ended, Ended)
        if ended is not None:
            return End(ended.exit_code, ended.because)
        return End(started.exit_code() if started is not None else None)
