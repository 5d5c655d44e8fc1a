"""The lock of a sweep's folder, respected on machines whose file system does not share flock."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from egobench.errors import EnvironmentProblem
from egobench.records.lock import ABROAD_PATIENCE_S, Holder, is_held, read_holder, take_lock, take_lock_for_all


def write_holder(path: Path, host: str, age_s: float) -> None:
    path.write_text(Holder(host=host, pid=7, since=time.time() - 1e6).model_dump_json())
    then = time.time() - age_s
    os.utime(path, (then, then))


def test_holder_elsewhere_who_lives_keeps_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    write_holder(path, "another-login-node", age_s=ABROAD_PATIENCE_S / 2)
    assert take_lock_for_all(path) is None
    holder = read_holder(path)
    assert holder is not None and holder.host == "another-login-node"


def test_holder_elsewhere_who_is_silent_loses_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    write_holder(path, "another-login-node", age_s=ABROAD_PATIENCE_S * 2)
    lock = take_lock_for_all(path)
    assert lock is not None
    lock.release()


def test_renewed_and_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = take_lock_for_all(path)
    assert lock is not None
    old = time.time() - 1000
    os.utime(path, (old, old))
    lock.renew()
    assert path.stat().st_mtime > time.time() - 10
    assert take_lock_for_all(path) is None
    lock.release()
    # Nobody is named any more, so another machine need not wait.
    assert read_holder(path) is None
    again = take_lock_for_all(path)
    assert again is not None
    again.release()


def test_it_is_renewed_while_its_holder_waits_for_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("egobench.records.lock.RENEW_EVERY_S", 0.02)
    path = tmp_path / "lock"
    lock = take_lock_for_all(path)
    assert lock is not None
    os.utime(path, (1000.0, 1000.0))
    deadline = time.monotonic() + 5
    while path.stat().st_mtime < time.time() - 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > time.time() - 10
    lock.release()
    os.utime(path, (1000.0, 1000.0))
    time.sleep(0.1)
    assert path.stat().st_mtime == 1000.0


def test_a_group_may_go_on_with_a_sweep(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    take = "import os, sys, pathlib; os.umask(0o002); from egobench.records.lock import take_lock as t; "
    subprocess.run([sys.executable, "-c", f"{take}t(pathlib.Path({str(path)!r}))"], check=True)
    assert path.stat().st_mode & 0o777 == 0o664


def test_a_lock_of_somebody_else_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    write_holder(path, "login2", age_s=1000)

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(EnvironmentProblem, match=r"lock: this lock belongs to \S+, .*; pid 7 on login2 holds it; "):
        take_lock(path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "lock"
    path.touch()

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(EnvironmentProblem, match="no file locks here"):
        take_lock(path)
    assert not is_held(path)
