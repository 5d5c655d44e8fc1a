"""Locks that end with their holder: flock on a file that also says who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Final

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

    def renew(self) -> None:
        """Tell other machines that the holder still lives."""
        with contextlib.suppress(OSError):  # read-only just now: whoever has something to write will say so
            os.utime(self.descriptor)

    def release(self) -> None:
        """Give the lock back, and say on every machine that nobody holds it."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.descriptor, 0)
        self.close()

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


ABROAD_PATIENCE_S: Final = 60.0
"""A lock taken on another machine counts as held for so long after it was last renewed."""


def take_lock_for_all(path: Path) -> Lock | None:
    """Take a lock that other machines respect even where their shared file system does not share flock.

    The holder calls `renew` every few seconds.
    """
    holder = read_holder(path)
    if holder is not None and holder.host != socket.gethostname() and _renewed_ago_s(path) < ABROAD_PATIENCE_S:
        return None
    return take_lock(path, wait_s=0.5)


def _renewed_ago_s(path: Path) -> float:
    # Both times by the file server's clock: those of the machines may differ.
    with disk_errors(path), tempfile.NamedTemporaryFile(dir=path.parent, prefix=".now.") as probe:
        return os.fstat(probe.fileno()).st_mtime - path.stat().st_mtime


def is_held(path: Path) -> bool:
    """Return whether a living process holds the lock."""
    try:
        # Read-only: those who may only look can ask, too, and flock's shared lock needs no more, on NFS either.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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
