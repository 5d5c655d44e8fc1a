"""Why the allocation, or the trial that it runs now, is to end: a signal, somebody's `cancel.json`, a newer start."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from types import FrameType
from typing import Final, Literal

from egobench.records.allocation import AllocationPaths, CancelRequest, Start, last_start
from egobench.records.claim import look_afresh
from egobench.records.outcome import OutcomeName
from egobench.records.store import read_document
from egobench.worker.slurm import outcome_of_warning

CLOSING_S: Final = 30.0
"""Of the time that Slurm grants after its warning, what ending the trial may take after a last save."""
SAVE_WITHIN_S: Final = 20.0
"""After a signal to end; Slurm kills what is left KillWait later, 30 s unless a site says otherwise. slurm.conf(5)."""


class Superseded(Exception):
    """A later start exists, or somebody gave the allocation up: we must not write anything any more."""


@dataclass(frozen=True)
class Halt:
    """A reason to end now."""

    kind: Literal["cancel", "warning", "budget", "signal", "superseded"]
    """`warning`: Slurm will end the job soon; `signal`: it ends it now, and only Slurm knows why."""
    why: str
    outcome: OutcomeName | None = "cancelled"
    """What the running trial comes to; None: it gets no outcome from us."""
    save_within_s: float = 0.0
    """How long the ranks of a trial that keeps checkpoints may take for a last one; 0: they are ended at once."""

    @property
    def interrupts(self) -> bool:
        """Return whether the trial is not to blame, and may be launched again."""
        return self.kind in ("warning", "budget")


class Stop:
    """Listens for every reason to end."""

    def __init__(
        self,
        paths: AllocationPaths | None = None,
        start: Start | None = None,
        slurm: bool = False,
        warned_before_s: float = 90.0,
    ) -> None:
        """Prepare to listen.

        Args:
            paths: The allocation; None: a trial run by hand.
            start: Our own start of it; a later one ends us.
            slurm: A signal to end comes from Slurm and says nothing about its cause.
            warned_before_s: How long before its time limit Slurm warns the allocation.
        """
        self._paths, self._start, self._slurm, self._warned_before_s = paths, start, slurm, warned_before_s
        self._signal: str | None = None
        self._warning: Halt | None = None
        self.is_warned = False
        self.budget_ends_at: float | None = None
        """Unix time at which the GPU-hours are used up, s."""
        self.cell_id: str | None = None
        """The cell whose trial runs now."""

    def listen(self) -> None:
        """Take SIGTERM, SIGINT and SIGHUP as the wish to end, under Slurm also SIGUSR2 as a warning."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        if self._slurm:
            signal.signal(signal.SIGUSR2, self._on_warning)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signal = self._signal or signal.Signals(number).name

    def _on_warning(self, _number: int, _frame: FrameType | None) -> None:
        self.is_warned = True

    @property
    def signal_name(self) -> str | None:
        """Return the signal that told us to end."""
        return self._signal

    def everything(self) -> Halt | None:
        """Return why no further trial is to start."""
        if why := self._why_superseded():
            return Halt("superseded", why, None)
        request = self._request()
        if request is not None and request.everything:
            return Halt("cancel", f"cancelled by {request.by}")
        if self._signal is not None:
            why = f"{self._signal} to the allocation"
            return Halt("signal", why, None, SAVE_WITHIN_S) if self._slurm else Halt("cancel", why)
        if self.is_warned:
            self._warning = self._warning or self._read_warning()
            return self._warning
        if self.budget_ends_at is not None and time.time() >= self.budget_ends_at:
            return Halt("budget", "the allocation's GPU-hours are used up", "timeout", SAVE_WITHIN_S)
        return None

    def this_trial(self) -> Halt | None:
        """Return why the trial that runs now is to end."""
        return self.everything() or (self.cell(self.cell_id) if self.cell_id else None)

    def cell(self, cell_id: str) -> Halt | None:
        """Return why trials of this cell are to be left out."""
        request = self._request()
        if request is None or not request.leaves_out(cell_id):
            return None
        return Halt("cancel", f"cancelled by {request.by}")

    def is_superseded(self) -> bool:
        """Return whether the allocation is not ours any more."""
        return bool(self._why_superseded())

    def _why_superseded(self) -> str:
        if self._paths is None or self._start is None:
            return ""
        look_afresh(self._paths.starts, self._paths.folder)
        if (last_start(self._paths) or 0) > self._start.number:
            return "a later start of this allocation runs"
        # Only when all is done we write it ourselves; until then it is the word of whoever settled our job.
        if self._slurm and self._paths.ended.exists():
            return "this allocation was given up; its trials may run elsewhere"
        return ""

    def _read_warning(self) -> Halt:
        start = self._start
        outcome = outcome_of_warning(start, time.time(), self._warned_before_s)
        why = "its time limit is near" if outcome == "timeout" else "it is preempted"
        within_s = max(SAVE_WITHIN_S, self._warned_before_s - CLOSING_S)
        return Halt("warning", f"Slurm warned the allocation: {why}", outcome, within_s)

    def _request(self) -> CancelRequest | None:
        return read_document(self._paths.cancel, CancelRequest) if self._paths else None
