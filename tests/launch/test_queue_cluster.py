"""`ask` against a real Slurm: what happens to jobs there is what it says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from egobench.launch.queue.poll import ask
from egobench.records.allocation import Job
from egobench.records.queue import JobState, QueueView
from egobench.records.store import SweepPaths
from tests.cluster.lab import Cluster
from tests.launch.recordings import job

pytestmark = pytest.mark.slurm
LONG = "#!/bin/sh\nsleep 120\n"


class Watch:
    """Asks as a driver does, and remembers every state that it saw."""

    def __init__(self, folder: Path) -> None:
        self.paths, self.jobs, self.seen = SweepPaths(folder), list[Job](), set[tuple[str, str, str]]()

    def submit(self, lab: Cluster, *options: str, tasks: str = "", script: str = LONG) -> str:
        name = f"ego-{time.time_ns()}"
        array = [f"--array={tasks}"] if tasks else []
        job_id = lab.submit(f"--job-name={name}", *options, *array, script=script)
        ids = (
            [f"{job_id}_{task}" for task in range(int(tasks.partition("%")[0].split("-")[1]) + 1)]
            if tasks
            else [job_id]
        )
        self.jobs += [job(each, name, time.time()) for each in ids]
        return job_id

    def look(self) -> QueueView:
        view = ask(self.paths, self.jobs, 0.5)
        self.seen |= {(state.job_id, state.state, state.activity) for state in view.jobs.values()}
        return view

    def until(self, job_id: str, done: Callable[[JobState], bool], patience_s: float = 40) -> JobState:
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            state = self.look().jobs[job_id]
            if done(state):
                return state
            time.sleep(0.2)
        raise AssertionError(f"{job_id} stayed {self.look().jobs[job_id]}")


def is_over(state: JobState) -> bool:
    return state.activity == "over"


def runs(state: JobState) -> bool:
    return state.activity == "active" and state.state == "RUNNING"


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path)


def test_tasks_of_an_array_are_cancelled_while_they_run_and_wait(cluster: Cluster, watch: Watch) -> None:
    job_id = watch.submit(cluster, tasks="0-2%1")
    watch.until(f"{job_id}_0", runs)
    assert watch.look().jobs[f"{job_id}_2"].activity == "waiting"
    cluster.run("scancel", f"{job_id}_0", f"{job_id}_2")
    waiting = watch.until(f"{job_id}_2", is_over)
    running = watch.until(f"{job_id}_0", is_over)
    assert (waiting.state, running.state) == ("CANCELLED", "CANCELLED")
    assert running.nodes and (running.source != "sacct" or running.reason.startswith("by uid"))
    assert watch.until(f"{job_id}_1", runs)


FIRST_LONG = '#!/bin/sh\n[ "${SLURM_RESTART_COUNT:-0}" = 0 ] && exec sleep 120\nsleep 1\n'
"""Ends by itself only where it was started again."""


def test_a_node_crashes_and_the_job_is_started_again(cluster: Cluster, watch: Watch) -> None:
    job_id = watch.submit(cluster, "--requeue", "--nodelist=n2", script=FIRST_LONG)
    lost = watch.submit(cluster, "--no-requeue", "--nodelist=n2")
    watch.until(job_id, runs)
    watch.until(lost, runs)
    cluster.crash_node("n2")
    time.sleep(3)
    watch.look()
    cluster.restore_node("n2")
    assert watch.until(lost, is_over).state == "NODE_FAIL"
    found = watch.until(job_id, is_over, 60)
    assert (found.state, found.restarts) == ("COMPLETED", 1)
    assert (job_id, "NODE_FAIL", "over") not in watch.seen


def test_the_controller_is_away(cluster: Cluster, watch: Watch) -> None:
    job_id = watch.submit(cluster)
    watch.until(job_id, runs)
    cluster.wait_saved(job_id)  # a job that is not it would forget
    cluster.kill_controller()
    deadline = time.monotonic() + 20
    while not (view := watch.look()).problem and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "controller" in view.problem and runs(view.jobs[job_id])
    cluster.restart_controller()
    cluster.run("scancel", job_id)
    assert watch.until(job_id, is_over, 60).state == "CANCELLED"
    assert watch.look().problem == ""


def test_the_database_is_away(cluster: Cluster, watch: Watch) -> None:
    job_id = watch.submit(cluster)
    watch.until(job_id, runs)
    cluster.stop_database()
    cluster.run("scancel", job_id)
    assert watch.until(job_id, is_over, 40).state == "CANCELLED"
    cluster.start_database()


def test_accounting_is_switched_off(bare_cluster: Cluster, watch: Watch) -> None:
    failing = watch.submit(bare_cluster, script="#!/bin/sh\nexit 3\n")
    array = watch.submit(bare_cluster, tasks="0-1%1")
    found = watch.until(failing, is_over)
    assert (found.state, found.exit_code) == ("FAILED", 3)
    watch.until(f"{array}_0", runs)
    bare_cluster.run("scancel", f"{array}_1")
    assert watch.until(f"{array}_1", is_over).state == "CANCELLED"
    bare_cluster.run("scancel", array)
    assert watch.until(f"{array}_0", is_over).state == "CANCELLED"
    view = watch.look()
    assert not view.has_accounting and view.problem == ""
