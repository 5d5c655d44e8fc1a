"""The lock of a sweep's folder, respected on machines whose file system does not share flock."""

from __future__ import annotations

import os
import time
from pathlib import Path

from egobench.records.lock import ABROAD_PATIENCE_S, Holder, read_holder, take_lock_for_all


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
