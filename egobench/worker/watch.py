"""Watches the ranks of a running trial from outside, ends all of them when it is over, and says why."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from egobench.probes.pulse import PulseReading, read_pulse
from egobench.records.outcome import OutcomeName, Phase
from egobench.records.rank import RankReport
from egobench.records.store import TrialPaths, read_document
from egobench.records.trial import Trial
from egobench.worker.process import descendants, end_all, read_usage
from egobench.worker.vigil import Vigil, furthest_behind

LOOK_EVERY_S: Final = 0.2
FILES_EVERY_S: Final = 0.5
DUMP_GRACE_S: Final = 0.5
"""Time for the ranks to write their stacks before they are killed."""
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


class Watch(threading.Thread):
    """One thread beside the elastic agent, for the length of one trial."""

    def __init__(self, trial: Trial, paths: TrialPaths, stop: Callable[[], str | None]) -> None:
        """Prepare to watch.

        Args:
            trial: What runs.
            paths: Where its ranks leave pulses and reports.
            stop: Returns why the trial is to be ended from outside, or None; asked twice a second.
        """
        super().__init__(name="watch", daemon=True)
        self.verdict: Verdict | None = None
        self.deaths: dict[int, float] = {}
        """Rank -> Unix time at which its process was found dead."""
        self.ended_at: float | None = None
        """Unix time at which this watch killed the ranks."""
        self._trial, self._paths, self._stop = trial, paths, stop
        self._over = threading.Event()
        self._before = descendants()
        self._started_s = time.monotonic()
        limits = trial.placement
        self._vigil = Vigil(limits.quiet_limit_s, limits.stall_limit_s, self._started_s)
        self._readings: dict[int, PulseReading] = {}
        self._handles: dict[int, int] = {}
        self._next_files_s = self._next_usage_s = 0.0
        self._failed_since_s: float | None = None

    def finish(self) -> None:
        """Stop watching, once the elastic agent has returned; afterwards no process of the trial is left."""
        self._over.set()
        self.join()
        self._note_deaths()
        end_all(descendants() - self._before)
        for handle in self._handles.values():
            os.close(handle)

    def run(self) -> None:
        """Look until the trial is over."""
        while not self._over.is_set():
            self._sleep()
            self._note_deaths()
            self._look(time.monotonic())

    def _sleep(self) -> None:
        alive = [handle for rank, handle in self._handles.items() if rank not in self.deaths]
        if not alive:
            self._over.wait(LOOK_EVERY_S)
            return
        poll = select.poll()
        for handle in alive:
            poll.register(handle, select.POLLIN)
        poll.poll(LOOK_EVERY_S * 1000)

    def _note_deaths(self) -> None:
        for rank, handle in self._handles.items():
            # A pid file descriptor becomes readable when its process ends. Source: pidfd_open(2).
            if rank not in self.deaths and select.select([handle], [], [], 0)[0]:
                self.deaths[rank] = time.time()

    def _look(self, now_s: float) -> None:
        for rank in range(self._trial.num_ranks):
            if (reading := read_pulse(self._paths.rank_pulse(rank))) is not None:
                self._readings[rank] = reading
                self._hold(rank, reading.pid)
        if self.verdict is not None or self.ended_at is not None:
            return
        self._vigil.see_pulses(self._readings, now_s)
        if now_s >= self._next_usage_s:
            self._next_usage_s = now_s + self._vigil.sample_every_s
            self._look_at_usage(now_s)
        if now_s >= self._next_files_s:
            self._next_files_s = now_s + FILES_EVERY_S
            self._look_at_files(now_s)
        self._judge(now_s)

    def _look_at_usage(self, now_s: float) -> None:
        pids = frozenset(reading.pid for reading in self._readings.values())
        if len(pids) < self._trial.num_ranks:
            pids = descendants()  # ranks are still being started, by a server that may still be importing
        usages = {pid: read_usage(pid) for pid in pids}
        self._vigil.see_usage({pid: usage for pid, usage in usages.items() if usage is not None}, now_s)

    def _hold(self, rank: int, pid: int) -> None:
        if rank in self._handles or rank in self.deaths:
            return
        try:
            self._handles[rank] = os.pidfd_open(pid)
        except ProcessLookupError:
            self.deaths[rank] = time.time()

    def _look_at_files(self, now_s: float) -> None:
        if (reason := self._stop()) is not None:
            self._end("cancelled", reason)
        elif self._has_failed():
            self._failed_since_s = self._failed_since_s or now_s
            if now_s - self._failed_since_s > FAILED_GRACE_S:
                self._kill()  # it is stuck on its way out; its report tells the outcome

    def _has_failed(self) -> bool:
        reports = (read_document(self._paths.rank_report(rank), RankReport) for rank in range(self._trial.num_ranks))
        return any(report is not None and report.outcome != "ok" and not report.echo for report in reports)

    def _judge(self, now_s: float) -> None:
        if self.verdict is not None or self.ended_at is not None:
            return
        limit_s = self._trial.placement.trial_time_limit_s
        if now_s - self._started_s > limit_s:
            self._end("timeout", f"longer than trial_time_limit_s = {limit_s:g}")
        elif (why := self._vigil.judge(now_s)) is not None:
            self._end("hang", why)

    def _end(self, outcome: OutcomeName, why: str) -> None:
        at = time.time()
        waiting: frozenset[int] = frozenset()
        if outcome in ("hang", "timeout"):
            self._dump_stacks()
            waiting = frozenset(rank for rank in self._readings if _waits_in_framework(self._paths, rank))
        if self._readings:
            rank = furthest_behind(self._readings, waiting)
            where = self._readings[rank]
            self.verdict = Verdict(outcome, at, why, rank, where.phase, where.step)
        else:
            self.verdict = Verdict(outcome, at, why)
        self._kill()

    def _dump_stacks(self) -> None:
        for rank, reading in self._readings.items():
            if rank not in self.deaths:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(reading.pid, signal.SIGUSR1)
        time.sleep(DUMP_GRACE_S)

    def _kill(self) -> None:
        self.ended_at = time.time()
        end_all(descendants() - self._before)


def _waits_in_framework(paths: TrialPaths, rank: int) -> bool:
    """Return whether the stack that faulthandler just dumped ends inside torch."""
    with contextlib.suppress(OSError):
        text = paths.rank_log(rank).read_text(errors="replace")
        innermost = re.findall(r"^Current thread .*\(most recent call first\):\n  File \"([^\"]+)\"", text, re.M)
        return bool(innermost) and "/torch/" in innermost[-1]
    return False
