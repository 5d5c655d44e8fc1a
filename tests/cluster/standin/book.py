"""What the stand-in cluster knows: one JSON file under a lock. Only the standard library, for quick commands."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Job = dict[str, Any]
LIVE = ("RUNNING", "SUSPENDED", "COMPLETING")
IN_QUEUE = ("PENDING", "REQUEUED", "REQUEUE_HOLD", *LIVE)
FRESH: dict[str, Any] = {
    "next_id": 1,
    "jobs": {},  # id as squeue shows it ("12", "12_3") -> job
    "history": [],  # earlier runs of requeued jobs, and jobs whose id was given out again: sacct -D
    "told": {},  # what a test asked for; see control.py
    "sacct_at": None,  # what a lagging sacct shows
}


class Book:
    """The state file of one stand-in cluster."""

    def __init__(self, base: Path) -> None:
        self.base = base

    @contextlib.contextmanager
    def open(self) -> Iterator[dict[str, Any]]:
        """Hold the lock, and write back what changed."""
        with (self.base / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = self.base / "state.json"
            before = path.read_text() if path.exists() else json.dumps(FRESH)
            state = json.loads(before)
            yield state
            after = json.dumps(state)
            if after != before or not path.exists():
                scratch = path.with_suffix(".new")
                scratch.write_text(after)
                scratch.replace(path)

    def processes(self, job: Job) -> list[int]:
        """Return the pids of a job's processes, whatever session they made for themselves."""
        mark = f"STANDIN_JOB={self.mark(job)}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def mark(self, job: Job) -> str:
        return f"{self.base}/{job['raw']}.{job['restarts']}.{job['submit']:.3f}"

    def signal(self, job: Job, number: int, batch: bool = True) -> None:
        """Signal every process of a job; without `batch` only those of its steps."""
        for pid in self.processes(job):
            with contextlib.suppress(OSError):
                if batch or b"STANDIN_STEP=" in Path(f"/proc/{pid}/environ").read_bytes():
                    os.kill(pid, number)


def record(job: Job, state: str, exit_code: str) -> Job:
    """Return how a run of a job is remembered."""
    return {**job, "state": state, "exit": exit_code, "end": time.time()}


def expand(text: str) -> list[int]:
    """Read `0-3,7`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers
