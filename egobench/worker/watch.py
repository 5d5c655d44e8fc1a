"""Watches the ranks of a running trial from outside, ends all of them when it is over, and says why."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from egobench.probes.pulse import PulseReading
from egobench.records.outcome import OutcomeName, Phase
from egobench.records.trial import Trial
from egobench.worker.last_save import LastSave
from egobench.worker.local import LocalRanks
from egobench.worker.pause import PauseMeter
from egobench.worker.process import Usage
from egobench.worker.remote import RemoteRanks
from egobench.worker.stop import Halt
from egobench.worker.vigil import Vigil, furthest_behind

LOOK_EVERY_S: Final = 0.2
FILES_EVERY_S: Final = 0.5
FAILED_GRACE_S: Final = 1.0
"""A rank that failed ends by itself within this time, and the elastic agent then ends the others."""


@dataclass(frozen=True)
class Verdict:
    """Why the watch ended the ranks."""

    outcome: OutcomeName
    at: float
    """Unix time, s."""
    message: str
    rank: int = 0
    phase: Phase = "launch"
    step: int = -1
    interrupted: bool = False
    """It was the allocation's doing."""


class Watch(threading.Thread):
    """One thread beside the elastic agent, for the length of one trial; on the first node, for all nodes."""

    def __init__(
        self, trial: Trial, local: LocalRanks, stop: Callable[[], Halt | None], remote: RemoteRanks | None = None
    ) -> None:
        """Prepare to watch.

        Args:
            trial: What runs.
            local: The ranks of this node.
            stop: Returns why the trial is to be ended from outside, or None; asked twice a second.
            remote: The ranks of other nodes.
        """
        super().__init__(name="watch", daemon=True)
        self.verdict: Verdict | None = None
        self.halt: Halt | None = None
        """Why the trial was ended from outside."""
        self.has_failed = False
        """It was no use; the ranks were ended because nobody looked after them."""
        self._pauses = PauseMeter()
        self._trial, self._local, self._why_end, self._remote = trial, local, stop, remote
        self._last_save = LastSave(trial, local.paths.save_request)
        self._over = threading.Event()
        self._started_s = time.monotonic()
        limits = trial.placement
        self._vigil = Vigil(limits.quiet_limit_s, limits.stall_limit_s, self._started_s)
        self._next_files_s = self._next_usage_s = 0.0
        self._failed_since_s: float | None = None

    @property
    def readings(self) -> dict[int, PulseReading]:
        """Return the last pulse of every rank that has one."""
        return self._local.readings | (self._remote.readings if self._remote else {})

    def finish(self) -> None:
        """Stop watching, once the ranks have ended on every node; afterwards no process of the trial is left here."""
        self._over.set()
        self.join()
        self._local.close()
        if not self._is_decided():
            self._see_pause()  # a trial may have ended in the moment after it

    def run(self) -> None:
        """Look until the trial is over; whatever happens here, the trial does not go on without us."""
        self._pauses.start()
        try:
            while not self._over.is_set():
                self._local.wait(self._over, LOOK_EVERY_S)
                self._local.look()
                if self._remote is not None:
                    self._remote.look()
                self._look(time.monotonic())
        except BaseException:
            self.has_failed = True
            self._kill()
            raise
        finally:
            self._pauses.stop()

    def _look(self, now_s: float) -> None:
        if self._is_decided():
            return
        if self._see_pause():
            self._kill()
            return
        if self._remote is not None and (self._remote.has_ended_badly() or self._remote.lost is not None):
            self._kill()  # what happened there came first; the ranks here would wait for it in vain
            return
        self._vigil.see_pulses(self.readings, now_s)
        if now_s >= self._next_usage_s:
            self._next_usage_s = now_s + self._vigil.sample_every_s
            self._vigil.see_usage(self._usages(), now_s)
        if now_s >= self._next_files_s:
            self._next_files_s = now_s + FILES_EVERY_S
            with contextlib.suppress(OSError):  # a shared file system that is in trouble for a moment
                self._look_at_files(now_s)
        self._judge(now_s)

    def _see_pause(self) -> bool:
        """Return whether nothing ran here for a while; the pause would pass for a slow step, or for a hang."""
        pause = self._pauses.found()
        if pause is None:
            return False
        length_s, began_at = pause
        why = f"the job was suspended for {length_s:.0f} s"
        # What the ranks say of it afterwards is its doing too.
        self.verdict = Verdict("preempted", began_at, why, interrupted=True)
        return True

    def _is_decided(self) -> bool:
        return self.verdict is not None or self.halt is not None or self._local.killed_at is not None

    def _usages(self) -> dict[int, Usage]:
        return self._local.usages() | (self._remote.usages if self._remote else {})

    def _look_at_files(self, now_s: float) -> None:
        halt = self._why_end()
        if halt is not None and not self._last_save.is_awaited(halt, self.readings, now_s):
            self.halt = halt
            if halt.outcome is None:
                self._kill()
            else:
                self._end(halt.outcome, halt.why, halt.interrupts)
        elif self._local.has_failed():
            self._failed_since_s = self._failed_since_s or now_s
            if now_s - self._failed_since_s > FAILED_GRACE_S:
                self._kill()  # it is stuck on its way out; its report tells the outcome

    def _judge(self, now_s: float) -> None:
        if self._is_decided():
            return
        limit_s = self._trial.placement.trial_time_limit_s
        if now_s - self._started_s > limit_s:
            self._end("timeout", f"longer than trial_time_limit_s = {limit_s:g}")
        elif (why := self._vigil.judge(now_s)) is not None:
            self._end("hang", why)

    def _end(self, outcome: OutcomeName, why: str, interrupted: bool = False) -> None:
        at = time.time()
        waiting: frozenset[int] = frozenset()
        if self.halt is None:
            waiting = self._dump_stacks()
        readings = self.readings
        if readings:
            rank = furthest_behind(readings, waiting)
            where = readings[rank]
            self.verdict = Verdict(outcome, at, why, rank, where.phase, where.step, interrupted)
        else:
            self.verdict = Verdict(outcome, at, why, interrupted=interrupted)
        self._kill()

    def _dump_stacks(self) -> frozenset[int]:
        if self._remote is not None:
            self._remote.ask_for_stacks()
        waiting = self._local.dump_stacks()
        return waiting | (self._remote.waiting() if self._remote is not None else frozenset())

    def _kill(self) -> None:
        self._local.kill()
        if self._remote is not None:
            self._remote.kill()
