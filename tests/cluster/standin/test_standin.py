"""The stand-in answers as the real programs do (texts compared with Slurm 22.05), and really runs jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.daemons import wait_until
from tests.cluster.standin.control import StandIn

pytestmark = pytest.mark.slurm
SCRIPT = """#!/bin/bash
#SBATCH --array=0-{last}%2
#SBATCH --nodes=2
#SBATCH --gpus-per-node=2
#SBATCH --time=10
#SBATCH --signal=USR2@60
#SBATCH --output={folder}/%A_%a.out
#SBATCH --job-name=demo
srun --unbuffered --output {folder}/%A_%a_%t.out --kill-on-bad-exit=1 bash -c '{step}'
"""


@pytest.fixture
def standin() -> Iterator[StandIn]:
    cluster = StandIn.up()
    yield cluster
    cluster.down()


def _submit(standin: StandIn, folder: Path, step: str, last: int = 0) -> str:
    (folder / "job.sh").write_text(SCRIPT.format(folder=folder, step=step, last=last))
    return standin.run("sbatch", str(folder / "job.sh")).stdout.split()[-1]


def test_an_array_runs_a_task_per_node_and_two_at_once(standin: StandIn, tmp_path: Path) -> None:
    job = _submit(standin, tmp_path, "echo $SLURM_ARRAY_TASK_ID $SLURM_PROCID $SLURMD_NODENAME; sleep 0.5", last=2)
    wait_until(lambda: len(standin.jobs("COMPLETED")) == 3, 15, "its end")
    assert (tmp_path / f"{job}_2_1.out").read_text() == "2 1 127.0.1.2\n"
    told = standin.run("sacct", "-X", "-n", "-P", "-j", job, "-o", "JobID,State,ExitCode").stdout
    assert told.splitlines() == [f"{job}_{task}|COMPLETED|0:0" for task in range(3)]
    assert standin.run("squeue", "-h", "-r", "-o", "%i").stdout == ""


def test_a_failing_task_ends_its_siblings(standin: StandIn, tmp_path: Path) -> None:
    job = _submit(standin, tmp_path, "[ $SLURM_PROCID = 1 ] && exit 7; sleep 60")
    standin.wait_state(f"{job}_0", "FAILED")
    assert standin.run("sacct", "-X", "-n", "-P", "-j", job, "-o", "ExitCode").stdout in {"7:0\n", "143:0\n"}


@pytest.mark.parametrize("state", ["OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED", "NODE_FAIL"])
def test_a_job_ends_as_told_and_nothing_of_it_is_left(standin: StandIn, tmp_path: Path, state: str) -> None:
    job = _submit(standin, tmp_path, "trap : TERM; while :; do sleep 0.1; done") + "_0"
    standin.wait_state(job, "RUNNING")
    standin.end(job, state, "0:125")
    standin.wait_state(job, state)
    with standin.book.open() as known:
        assert not standin.book.processes(known["jobs"][job])


def test_a_requeued_job_shows_its_failure_and_starts_again(standin: StandIn, tmp_path: Path) -> None:
    job = _submit(standin, tmp_path, "echo start $SLURM_RESTART_COUNT; sleep 60") + "_0"
    wait_until((tmp_path / f"{job}_0.out").exists, 30, "the start")
    standin.end(job, "NODE_FAIL", requeue=True, crash=True, shown_s=8)
    wait_until(lambda: standin.state(job) == "PENDING", 30, "the requeue")
    assert "NODE_FAIL" in standin.run("sacct", "-X", "-n", "-P", "-j", job, "-o", "State").stdout
    assert standin.run("squeue", "-h", "-r", "-o", "%T %r").stdout == "PENDING BeginTime\n"
    standin.wait_state(job, "RUNNING")
    wait_until(lambda: "start 1" in (tmp_path / f"{job}_0.out").read_text(), 30, "the second start")
    told = standin.run("sacct", "-X", "-D", "-n", "-P", "-j", job, "-o", "State").stdout
    assert told == "NODE_FAIL\nRUNNING\n"


def test_scancel_warns_nobody_and_signals_reach_steps_only(standin: StandIn, tmp_path: Path) -> None:
    job = _submit(standin, tmp_path, 'trap "echo warned" USR2; echo ready; while :; do sleep 0.1; done') + "_0"
    outs = [tmp_path / f"{job}_{rank}.out" for rank in range(2)]
    out = outs[0]
    wait_until(lambda: all(one.exists() and "ready" in one.read_text() for one in outs), 30, "both ranks' traps")
    wait_until(lambda: standin.run("scancel", "--signal=USR2", job).returncode == 0, 30, "scancel")
    wait_until(lambda: "warned" in out.read_text(), 30, "the signal")
    assert standin.state(job) == "RUNNING"
    standin.run("scancel", job)
    standin.wait_state(job, "CANCELLED")
    assert standin.run("sacct", "-X", "-n", "-P", "-j", job, "-o", "State").stdout == "CANCELLED by 0\n"


def test_its_moods(standin: StandIn, tmp_path: Path) -> None:
    standin.tell(pending_because="PartitionConfig")
    job = _submit(standin, tmp_path, "true") + "_0"
    wait_until(lambda: "PartitionConfig" in standin.run("squeue", "-h", "-r", "-o", "%r").stdout, 30, "its reason")
    standin.tell(sacct="disabled")
    assert "accounting storage is disabled" in standin.run("sacct").stderr
    standin.tell(controller_down=True)
    assert "Unable to contact slurm controller" in standin.run("squeue").stderr
    standin.settle()
    standin.wait_state(job, "COMPLETED")
    standin.refuse(1)
    assert "QOSMaxSubmitJobPerUserLimit" in standin.run("sbatch", str(tmp_path / "job.sh")).stderr
    standin.restart_ids()
    assert _submit(standin, tmp_path, "true") == job.partition("_")[0]
