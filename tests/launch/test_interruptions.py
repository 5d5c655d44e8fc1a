"""Whoever is killed and whenever: the same command again, and every planned trial has exactly one final outcome."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from egobench.records.lock import read_holder
from egobench.records.outcome import Outcome
from tests.launch.sweeps import run_sweep, running_pids, start_sweep, state_of, wait_for, write_matrix


def allocation_pid(folder: Path) -> int:
    (allocation,) = state_of(folder).allocations
    holder = read_holder(allocation.paths.lock)
    assert holder is not None
    return holder.pid


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_login_killed_sweep_goes_on_and_is_found_again(tmp_path: Path) -> None:
    write_matrix(tmp_path, trials=1, steps=300)  # it goes on while two logins start
    login = start_sweep(tmp_path)
    wait_for(lambda: running_pids(tmp_path))
    before = allocation_pid(tmp_path)

    # Two at once: the second says who drives, and leaves.
    code, _, said = run_sweep(tmp_path)
    assert code == 5
    assert f"SweepBusy: {tmp_path / 'runs' / 'small'}" in said
    assert f"pid {login.pid}" in said

    login.send_signal(signal.SIGKILL)
    login.communicate()
    assert allocation_pid(tmp_path) == before
    code, out, said = run_sweep(tmp_path)
    assert code == 0, said
    assert "re-attached to allocation 1" in said
    state = state_of(tmp_path)
    assert state.ledger["ok"] == state.ledger["planned"] == 2
    assert out == "small: 2 planned: 2 ok\n"
    assert {trial.document.attempt for trial in state.trials if trial.document} == {1}
    assert len(list((tmp_path / "runs" / "small" / "allocations").iterdir())) == 1

    # Everything is there: nothing starts.
    times = [trial.paths.outcome.stat().st_mtime_ns for trial in state.trials]
    assert run_sweep(tmp_path)[0] == 0
    assert [trial.paths.outcome.stat().st_mtime_ns for trial in state.trials] == times
    assert len(list((tmp_path / "runs" / "small" / "allocations").iterdir())) == 1


@pytest.mark.slow
def test_agent_killed_ranks_die_and_the_trial_runs_again(tmp_path: Path) -> None:
    write_matrix(tmp_path, trials=1, steps=120)
    login = start_sweep(tmp_path)
    ranks = wait_for(lambda: running_pids(tmp_path))
    os.kill(allocation_pid(tmp_path), signal.SIGKILL)
    wait_for(lambda: all(is_gone(pid) for pid in ranks), timeout_s=30)
    _, said = login.communicate(timeout=60)
    assert login.returncode == 5
    assert "the allocation was killed" in said
    assert state_of(tmp_path).ledger["running"] == 0

    code, _, said = run_sweep(tmp_path)
    assert code == 0, said
    attempts = sorted(trial.document.attempt for trial in state_of(tmp_path).trials if trial.document)
    assert attempts == [1, 2]


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """The login process or the allocation, a few times; what has ended stays ended."""
    write_matrix(tmp_path, trials=3, steps=8)
    dice = random.Random(7)
    final: dict[Path, bytes] = {}
    for turn in range(4):
        login = start_sweep(tmp_path)
        time.sleep(dice.uniform(0.5, 5.0))
        victim = login.pid
        if turn % 2 and (tmp_path / "runs" / "small" / "sweep.json").exists():
            living = state_of(tmp_path).allocations
            holder = read_holder(living[0].paths.lock) if living else None
            victim = holder.pid if holder else victim
        os.kill(victim, signal.SIGKILL)
        login.communicate(timeout=150)
        for path, content in final.items():
            assert path.read_bytes() == content
        for path in tmp_path.glob("runs/small/*/*/outcome.json"):
            content = path.read_bytes()
            if not Outcome.model_validate_json(content).interrupted:  # that one may still be moved aside
                final[path] = content
    code, out, said = run_sweep(tmp_path)
    assert code == 0, said
    assert out == "small: 6 planned: 6 ok\n"
    for path, content in final.items():
        assert path.read_bytes() == content
    # Every attempt that left something was moved aside with its record, and none of those had ended by itself.
    for path in tmp_path.glob("runs/small/*/*/attempts/*"):
        record = Outcome.model_validate_json((path / "outcome.json").read_text())
        assert (record.outcome, record.interrupted) == ("node_fail", True)


def test_killed_rank_is_a_crash_and_the_rest_goes_on(tmp_path: Path) -> None:
    write_matrix(tmp_path, trials=1, steps=120)
    login = start_sweep(tmp_path)
    ranks = wait_for(lambda: running_pids(tmp_path))
    os.kill(ranks[1], signal.SIGKILL)
    out, said = login.communicate(timeout=120)
    assert login.returncode == 3
    assert out == "small: 2 planned: 1 ok, 1 crash\n"
    assert "first crash; its log: " in said
    failed = next(trial for trial in state_of(tmp_path).trials if trial.outcome == "crash")
    assert failed.document is not None
    assert failed.document.failure is not None
    assert (failed.document.failure.rank, failed.document.failure.message) == (1, "killed by SIGKILL")

    # A failed trial is final, until it is named.
    assert run_sweep(tmp_path)[0] == 3
    code, out, _ = run_sweep(tmp_path, retry="crash")
    assert (code, out) == (0, "small: 2 planned: 2 ok\n")
    kept = Outcome.model_validate_json((failed.paths.attempts / "1" / "outcome.json").read_text())
    assert kept == failed.document


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.getuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs of one megabyte")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("full_when", [pytest.param("running", marks=pytest.mark.slow), "before"])
def test_full_disk(small_disk: Path, full_when: str) -> None:
    write_matrix(small_disk, trials=1, steps=3000 if full_when == "running" else 5)
    ballast = small_disk / "ballast"
    if full_when == "before":
        _fill(ballast)
    login = start_sweep(small_disk)
    if full_when == "running":
        wait_for(lambda: running_pids(small_disk))
        _fill(ballast)
    _, said = login.communicate(timeout=90)
    assert login.returncode == 5, said
    assert "No space left on device" in said or "disk is full" in said, said
    assert "run the same command again" in said
    assert not list(small_disk.glob("runs/small/*/*/outcome.json"))
    ballast.unlink()
    write_matrix(small_disk, trials=1, steps=5)
    code, _, said = run_sweep(small_disk)
    assert code == 0, said
    assert state_of(small_disk).ledger["ok"] == 2


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as stream:
        for size in (65536, 4096, 512, 1):
            try:
                while stream.write(b"\0" * size):
                    pass
            except OSError:
                continue
