"""The ranks of a trial on this node: their pulses, their processes, their end. Nothing here looks beyond the node."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import threading
import time
from pathlib import Path
from typing import Final

from egobench.probes.pulse import PulseReading, read_pulse
from egobench.records.rank import RankReport
from egobench.records.store import TrialPaths, read_document
from egobench.worker.process import Usage, descendants, end_all, read_usage

STACKS_WITHIN_S: Final = 5.0
"""Time for the ranks to write their stacks before they are killed; one that is stopped never does."""
_SETTLED_S: Final = 0.1
"""Who has written nothing for so long has written all of its stack."""
SYNC_EVERY_S: Final = 5.0
"""How often pulses are sent to a shared file system, where other nodes look at them."""


class LocalRanks:
    """Looks after the ranks that this process starts for one trial."""

    def __init__(self, paths: TrialPaths, ranks: range, shares_files: bool = False) -> None:
        """Prepare to look.

        Args:
            paths: The trial.
            ranks: Those of this node.
            shares_files: Other nodes read the pulses, over a file system that must be told to pass them on.
        """
        self.ranks = ranks
        self.readings: dict[int, PulseReading] = {}
        self.deaths: dict[int, float] = {}
        """Rank -> Unix time at which its process was found dead."""
        self.killed_at: float | None = None
        """Unix time at which we killed the ranks."""
        self.paths, self._shares_files = paths, shares_files
        self._before = descendants()
        self._handles: dict[int, int] = {}
        self._polled: dict[int, int] = {}
        """Rank -> pid, where the kernel gives no handle."""
        self._next_sync_s = time.monotonic() + SYNC_EVERY_S

    def wait(self, over: threading.Event, limit_s: float) -> None:
        """Return when a rank dies, when the trial is over, or after so long."""
        alive = [handle for rank, handle in self._handles.items() if rank not in self.deaths]
        if not alive:
            over.wait(limit_s)
            return
        poll = select.poll()
        for handle in alive:
            poll.register(handle, select.POLLIN)
        poll.poll(limit_s * 1000)

    def look(self) -> None:
        """Take pulses, and see who has died."""
        self._note_deaths()
        for rank, reading in self._read_pulses().items():
            self.readings[rank] = reading
            self._hold(rank, reading.pid)
        if self._shares_files and time.monotonic() >= self._next_sync_s:
            self._next_sync_s = time.monotonic() + SYNC_EVERY_S
            self._send_pulses()

    def _read_pulses(self) -> dict[int, PulseReading]:
        found: dict[int, PulseReading] = {}
        for rank in self.ranks:
            with contextlib.suppress(OSError):  # a shared file system that is in trouble for a moment
                if (reading := read_pulse(self.paths.rank_pulse(rank))) is not None:
                    found[rank] = reading
        return found

    def _note_deaths(self) -> None:
        for rank, handle in self._handles.items():
            # A pid file descriptor becomes readable when its process ends. Source: pidfd_open(2).
            if rank not in self.deaths and _is_readable(handle):
                self.deaths[rank] = time.time()
        for rank, pid in self._polled.items():
            if rank not in self.deaths and _is_gone(pid):
                self.deaths[rank] = time.time()

    def _hold(self, rank: int, pid: int) -> None:
        if rank in self._handles or rank in self._polled or rank in self.deaths:
            return
        try:
            self._handles[rank] = os.pidfd_open(pid)
        except ProcessLookupError:
            self.deaths[rank] = time.time()
        except OSError:  # ENOSYS before Linux 5.3 and in some sandboxes, EMFILE: /proc tells too, only later
            self._polled[rank] = pid

    def _send_pulses(self) -> None:
        # A page that a rank has mapped stays on this node until somebody asks for it to be written.
        for rank in self.readings:
            with contextlib.suppress(OSError):
                descriptor = os.open(self.paths.rank_pulse(rank), os.O_RDWR)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def usages(self) -> dict[int, Usage]:
        """Return what each process of the trial has used so far, by pid."""
        pids = frozenset(reading.pid for reading in self.readings.values())
        if len(pids) < len(self.ranks):
            pids = descendants()  # ranks are still being started, by a server that may still be importing
        found = {pid: read_usage(pid) for pid in pids}
        return {pid: usage for pid, usage in found.items() if usage is not None}

    def reports(self) -> list[RankReport]:
        """Return what the ranks have said about their end."""
        found = (read_document(self.paths.rank_report(rank), RankReport) for rank in self.ranks)
        return [report for report in found if report is not None]

    def has_failed(self) -> bool:
        """Return whether a rank says that it failed by itself."""
        return any(report.outcome != "ok" and not report.echo for report in self.reports())

    def dump_stacks(self) -> frozenset[int]:
        """Have every living rank write its stack to its log; return those that wait inside the framework."""
        living = {rank: reading.pid for rank, reading in self.readings.items() if rank not in self.deaths}
        before = {rank: size_of(self.paths.rank_log(rank)) for rank in living}
        for pid in living.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
        deadline = time.monotonic() + STACKS_WITHIN_S
        sizes = before
        while time.monotonic() < deadline:
            time.sleep(_SETTLED_S)
            last, writing = sizes, [rank for rank, pid in living.items() if not _is_gone(pid)]
            sizes = {rank: size_of(self.paths.rank_log(rank)) for rank in writing}
            if all(before[rank] < size == last[rank] for rank, size in sizes.items()):
                break
        return frozenset(rank for rank in self.readings if _waits_in_framework(self.paths, rank))

    def kill(self) -> None:
        """End all ranks of this node."""
        self.killed_at = self.killed_at or time.time()
        end_all(descendants() - self._before)

    def close(self) -> None:
        """Finish, once the elastic agent has returned; afterwards no process of the trial is left on this node."""
        self._note_deaths()
        end_all(descendants() - self._before)
        self.readings |= self._read_pulses()
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()


def size_of(path: Path) -> int:
    """Return the bytes of a file; 0 where there is none yet."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    usage = read_usage(pid)
    return usage is not None and usage.state in "ZX"


def _is_readable(handle: int) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(0))


def _waits_in_framework(paths: TrialPaths, rank: int) -> bool:
    """Return whether the stack that faulthandler just dumped ends inside torch."""
    with contextlib.suppress(OSError):
        text = paths.rank_log(rank).read_text(errors="replace")
        innermost = re.findall(r"^Current thread .*\(most recent call first\):\n  File \"([^\"]+)\"", text, re.M)
        return bool(innermost) and "/torch/" in innermost[-1]
    return False
