"""Locks that end with their holder: flock on a file that also says who holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from egobench.errors import EnvironmentProblem
from egobench.records.store import disk_errors
from egobench.spec.strict import Record

RENEW_EVERY_S: Final = 10.0
NO_LOCKS: Final = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What flock says on a file system without it: Lustre mounted without `-o flock`, NFS without its lock daemon."""


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
        self._is_over = threading.Event()
        self._renewer: threading.Thread | None = None

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

    def keep_renewed(self) -> None:
        """Renew it until it is closed, whatever else this process waits for."""

        def renew() -> None:
            while not self._is_over.wait(RENEW_EVERY_S):
                self.renew()

        self._renewer = threading.Thread(target=renew, name=f"renews {self.path}", daemon=True)
        self._renewer.start()

    def release(self) -> None:
        """Give the lock back, and say on every machine that nobody holds it."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.descriptor, 0)
        self.close()

    def close(self) -> None:
        """Close this process's descriptor; a child that inherited it goes on holding the lock."""
        self._is_over.set()
        if self._renewer is not None:
            self._renewer.join(RENEW_EVERY_S)
        os.close(self.descriptor)


def take_lock(path: Path, wait_s: float = 0.0) -> Lock | None:
    """Take the lock; None where somebody else holds it.

    Args:
        path: The lock file.
        wait_s: Go on trying for so long, because `is_held` takes a lock for an instant to find out.

    Raises:
        EnvironmentProblem: the file may not be written, or its file system has no locks.
    """
    descriptor = _open(path)
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
        except OSError as error:
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                todo = "mount it with flock, or choose a --runs folder on another file system"
                raise EnvironmentProblem(f"{path}: no file locks here: {error.strerror}; {todo}") from error
            raise
        lock = Lock(path, descriptor)
        try:
            lock.name_holder(os.getpid())
        except BaseException:
            lock.close()
            raise
        return lock


def _open(path: Path) -> int:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The umask decides: in a folder of a group any of them may go on with a sweep.
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError as error:
            if not path.exists():
                raise
            owner, holder = path.stat().st_uid, read_holder(path)
            who = f"; pid {holder.pid} on {holder.host} holds it" if holder else ""
            raise EnvironmentProblem(
                f"{path}: this lock belongs to {_name_of(owner)}, and you may not write it{who}; "
                "let them go on, or ask them for `chmod g+w`"
            ) from error


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


ABROAD_PATIENCE_S: Final = 60.0
"""A lock taken on another machine counts as held for so long after it was last renewed."""


def take_lock_for_all(path: Path) -> Lock | None:
    """Take a lock that other machines respect even where their shared file system does not share flock.

    It is renewed until it is released.
    """
    holder = read_holder(path)
    if holder is not None and holder.host != socket.gethostname() and _renewed_ago_s(path) < ABROAD_PATIENCE_S:
        return None
    lock = take_lock(path, wait_s=0.5)
    if lock is not None:
        lock.keep_renewed()
    return lock


def _renewed_ago_s(path: Path) -> float:
    # Both times by the file server's clock: those of the machines may differ.
    with disk_errors(path), tempfile.NamedTemporaryFile(dir=path.parent, prefix=".now.") as probe:
        return os.fstat(probe.fileno()).st_mtime - path.stat().st_mtime


def is_held(path: Path) -> bool:
    """Return whether a living process holds the lock; False too where there are no locks, so that nobody can."""
    try:
        # Read-only: those who may only look can ask, too, and flock's shared lock needs no more, on NFS either.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    finally:
        os.close(descriptor)
    return False


def read_holder(path: Path) -> Holder | None:
    """Return who wrote the lock file last."""
    with contextlib.suppress(OSError, ValidationError):
        return Holder.model_validate_json(path.read_bytes())
    return None
