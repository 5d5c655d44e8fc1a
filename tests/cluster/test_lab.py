"""The test cluster itself: it computes, remembers, and survives what its tests will do to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.daemons import wait_until
from tests.cluster.lab import Cluster

pytestmark = pytest.mark.slurm


def test_a_step_spans_two_nodes_with_four_gpus_each(cluster: Cluster) -> None:
    said = cluster.run("srun", "-N2", "--gpus-per-node=4", "sh", "-c", "echo $(hostname) $CUDA_VISIBLE_DEVICES")
    assert sorted(said.splitlines()) == ["n1 0,1,2,3", "n2 0,1,2,3"]


def test_accounting_remembers_a_job(cluster: Cluster) -> None:
    job = cluster.submit(script="#!/bin/sh\nexit 3\n")
    told = ["sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode"]
    wait_until(lambda: cluster.run(*told).strip() == "FAILED|3:0", 15, "sacct's word")


def test_without_accounting_sacct_says_so(bare_cluster: Cluster) -> None:
    assert bare_cluster.run("srun", "hostname").strip() in {"n1", "n2"}
    done = subprocess.run(["sacct"], capture_output=True, text=True, check=False)
    assert done.returncode and "accounting storage is disabled" in done.stderr


def test_a_node_crash_takes_the_tasks_and_the_job_is_requeued(cluster: Cluster, tmp_path: Path) -> None:
    script = f"#!/bin/sh\nhostname >>{tmp_path}/began\nsleep 77777\n"
    job = cluster.submit("--nodelist=n2", "--requeue", script=script)
    wait_until((tmp_path / "began").exists, 10, "the start")
    wait_until(lambda: _sleeping() == 1, 10, "its sleep: the shell starts it after it has written")
    cluster.crash_node("n2")
    wait_until(lambda: _sleeping() == 0, 10, "the end of its sleep")
    cluster.wait_state(job, "PENDING")
    cluster.restore_node("n2")
    wait_until(lambda: (tmp_path / "began").read_text() == "n2\nn2\n", 30, "the second start")


def test_preemption_warns_and_then_requeues(cluster: Cluster, tmp_path: Path) -> None:
    step = f"trap 'echo warned >>{tmp_path}/said' USR2; echo >>{tmp_path}/ready; while :; do sleep 0.1; done"
    script = f'#!/bin/sh\nsrun --signal=USR2@60 sh -c "{step}"\n'
    job = cluster.submit("--nodes=2", "--gpus-per-node=4", "--signal=USR2@60", "--time=5", "--requeue", script=script)
    cluster.wait_state(job, "RUNNING")
    wait_until(lambda: (tmp_path / "ready").exists() and (tmp_path / "ready").read_text() == "\n\n", 20, "both tasks")
    high = cluster.preempt(seconds=1)
    cluster.wait_state(high, "COMPLETED")
    assert "warned" in (tmp_path / "said").read_text()
    cluster.wait_state(job, "RUNNING")


def test_the_controller_comes_back_with_its_jobs(cluster: Cluster) -> None:
    job = cluster.submit(script="#!/bin/sh\nsleep 300\n")
    cluster.wait_state(job, "RUNNING")
    cluster.wait_saved(job)
    cluster.kill_controller()
    with pytest.raises(subprocess.CalledProcessError):
        cluster.run("squeue")
    cluster.restart_controller()
    assert cluster.state(job) == "RUNNING"


def test_a_killed_owner_leaves_no_daemon(tmp_path: Path) -> None:
    code = "from tests.cluster.lab import Cluster; c = Cluster.up(database=False); print(c.base, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        base = Path(owner.stdout.readline().strip())
        assert (base / "run" / "slurmctld.pid").exists()
        os.kill(owner.pid, signal.SIGKILL)
        wait_until(lambda: not base.exists(), 60, "its end")
    assert not [pid for pid in Path("/proc").glob("[0-9]*/environ") if _mentions(pid, f"{base}/")]


def _sleeping() -> int:
    return sum(_mentions(path, "sleep\x0077777\x00") for path in Path("/proc").glob("[0-9]*/cmdline"))


def _mentions(path: Path, text: str) -> bool:
    try:
        return text.encode() in path.read_bytes()
    except OSError:
        return False
