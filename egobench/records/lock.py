"""Locks that end with their holder: flock on a file that also says who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

from pydantic import ValidationError

from egobench.records.store import disk_errors
from egobench.spec.strict import Record


class Holder(Record):
    """The text inside a lock file."""

    host: str
    pid: int
    since: float
    """Unix time, s."""


class Lock:
    """An exclusive lock; the kernel gives it back when the last process that holds the descriptor is gone."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def name_holder(self, pid: int) -> None:
        """Write who holds the lock, for people and for `cancel`."""
        text = Holder(host=socket.gethostname(), pid=pid, since=time.time()).model_dump_json()
        with disk_errors(self.path):
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, text.encode(), 0)

    def close(self) -> None:
        """Close this process's descriptor; a child that inherited it goes on holding the lock."""
        os.close(self.descriptor)


def take_lock(path: Path, wait_s: float = 0.0) -> Lock | None:
    """Take the lock; None where somebody else holds it.

    Args:
        path: The lock file.
        wait_s: Go on trying for so long, because `is_held` takes a lock for an instant to find out.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            os.close(descriptor)
            return None
        lock = Lock(path, descriptor)
        try:
            lock.name_holder(os.getpid())
        except BaseException:
            lock.close()
            raise
        return lock


def is_held(path: Path) -> bool:
    """Return whether a living process holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_holder(path: Path) -> Holder | None:
    """Return who wrote the lock file last."""
    with contextlib.suppress(OSError, ValidationError):
        return Holder.model_validate_json(path.read_bytes())
    return None
