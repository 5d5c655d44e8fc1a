"""What the kernel knows about processes: parents, children, CPU, I/O, and who the OOM killer took."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def die_with_parent(how: signal.Signals) -> None:
    """Ask the kernel to send `how` to this process when its parent dies. Source: prctl(2), PR_SET_PDEATHSIG."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(how), 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent died, so that `strays` sees them. Source: prctl(2)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def keep_freed_memory() -> None:
    """Have malloc keep what is freed: to give activations back after each step is to page them in again in the next.

    It costs no peak; what counts peaks trims first. Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
    """
    with contextlib.suppress(AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 2**25)  # the largest it takes


def is_alive(pid: int) -> bool:
    """Return whether the process exists and is no zombie."""
    usage = read_usage(pid)
    return usage is not None and usage.state not in "ZX"


def descendants() -> frozenset[int]:
    """Return the living processes below this one."""
    return frozenset(child.pid for child in psutil.Process().children(recursive=True))


def end_all(pids: frozenset[int]) -> None:
    """Kill processes that are ours."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Usage:
    """What a process has used so far."""

    wanted_cpu_s: float
    """CPU time used, and time spent ready to run while the cores were busy with others."""
    io_bytes: int
    """Read and written through system calls, caches and pipes included."""
    major_faults: int
    state: str
    """R running, S sleeping, D waiting for a disk, T stopped, Z dead."""


def read_usage(pid: int) -> Usage | None:
    """Read /proc/<pid>; None where there is no such process. Source: proc_pid_stat(5), proc_pid_io(5)."""
    try:
        # The command name may hold spaces and parentheses: fields are counted from the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    io_bytes = 0
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/io").read_text()
        io_bytes = sum(int(count) for count in re.findall(r"^[rw]char: (\d+)", text, re.MULTILINE))
    used_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return Usage(used_s + _run_delay_s(pid), io_bytes, int(fields[9]), fields[0])


def _run_delay_s(pid: int) -> float:
    # A rank starved of CPU by its neighbours is slow, not hung. Source: Documentation/scheduler/sched-stats.rst.
    total_ns = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):  # the thread, or the kernel's accounting, may not be there
            total_ns += int(file.read_text().split()[1])
    return total_ns * 1e-9


def count_oom_kills() -> int:
    """Return how many processes the kernel's OOM killer took so far, in this cgroup or else on this machine."""
    folders = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, controllers, folder in folders:
        inside = folder.strip("/")
        if controllers == "memory":
            files = [Path("/sys/fs/cgroup/memory", inside, "memory.oom_control")]
        elif controllers == "":
            files = [Path("/sys/fs/cgroup", inside, "memory.events")]
        else:
            continue
        for file in files:
            if (count := _counter(file)) is not None:
                return count
    return _counter(Path("/proc/vmstat")) or 0


def _counter(file: Path) -> int | None:
    with contextlib.suppress(OSError):
        if found := re.search(r"^oom_kill (\d+)", file.read_text(), re.MULTILINE):
            return int(found[1])
    return None
