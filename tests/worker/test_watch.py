"""The watch itself: what it does when nothing ran for a while, and when it fails."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from egobench.records.pulse import LAYOUT, MAGIC
from egobench.records.store import TrialPaths
from egobench.worker import local, pause, team
from egobench.worker.local import LocalRanks
from egobench.worker.pause import PauseMeter
from egobench.worker.slurm import read_step
from egobench.worker.watch import Watch
from tests.worker.trials import make_trial


def test_pauses_are_seen_before_and_after_the_next_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(pause, "_now", lambda: (now[0], 1000 + now[0]))
    meter = PauseMeter()
    now[0] += 9
    assert meter.found() is None
    meter._tick()
    now[0] += 61
    assert meter.found() == (61, 1109)
    meter._tick()
    now[0] += 1
    assert meter.found() == (61, 1109)


def test_a_pause_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both limits have passed when the watch looks again."""
    ranks = LocalRanks(TrialPaths(tmp_path), range(1))
    watch = Watch(make_trial("c", ranks=1, quiet_limit_s=0.1, trial_time_limit_s=0.1), ranks, lambda: None)
    clock = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda which: clock(which) + 60)
    time.sleep(0.2)
    watch.start()
    time.sleep(0.5)
    watch.finish()
    assert watch.verdict is not None
    assert (watch.verdict.outcome, watch.verdict.interrupted) == ("preempted", True)
    assert re.search(r"suspended for 6\d s", watch.verdict.message)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_watch_that_fails_ends_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = LocalRanks(TrialPaths(tmp_path), range(1))
    child = subprocess.Popen(["sleep", "60"])
    watch = Watch(make_trial("c", ranks=1), ranks, lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    watch.start()
    assert child.wait(timeout=60) < 0
    watch.finish()
    assert watch.has_failed


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EMFILE])
def test_without_handles_deaths_are_seen_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(number, "no handle")

    monkeypatch.setattr(local.os, "pidfd_open", refuse)
    child = subprocess.Popen(["sleep", "60"])
    paths = TrialPaths(tmp_path)
    paths.ranks.mkdir()
    paths.rank_pulse(0).write_bytes(LAYOUT.pack(1, child.pid, 0, 0, 0.0, 0.0, MAGIC).ljust(64, b"\0"))
    ranks = LocalRanks(paths, range(1))
    ranks.look()
    ranks.look()
    assert ranks.deaths == {}
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    ranks.look()
    assert set(ranks.deaths) == {0}
    child.wait()
    ranks.close()


def test_who_was_suspended_himself_heard_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_JOB_ID": f"beats-{time.time()}"}
    leader = team.Leader(read_step(names))
    now = [time.monotonic()]
    monkeypatch.setattr(team.time, "monotonic", lambda: now[0])
    leader.channel.count("beat/1", 1)
    assert leader.lost() is None
    now[0] += 300
    assert leader.lost() is None
    found = []
    for _ in range(60):
        now[0] += 0.2
        found.append(leader.lost())
    assert found[20] is None
    assert found[-1] == "n2"
