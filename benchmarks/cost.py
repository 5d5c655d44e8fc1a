"""What a child process used, for the benchmarks of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import NamedTuple


class Cost(NamedTuple):
    """What a child process used."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int

    @property
    def time_s(self) -> float:
        return self.wall_s if self.cpu_s > 0.8 * self.wall_s else self.cpu_s


def cost_of(arguments: list[str]) -> Cost:
    """Run a child process with its output thrown away, and return what it used."""
    start = time.perf_counter()
    child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(arguments)}: exit status {os.waitstatus_to_exitcode(status)}")
    scale = 1 if sys.platform == "darwin" else 1024
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale)
