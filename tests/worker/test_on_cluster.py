"""The worker as Slurm runs it, over two nodes, from a hand-written allocation: no login side."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from egobench.errors import EXIT_AGAIN
from egobench.records.allocation import AllocationPaths, Interruption, Start
from egobench.records.outcome import Outcome
from egobench.records.store import TrialPaths, read_document
from egobench.records.trial import Drill
from tests.cluster.lab import Cluster
from tests.worker.nodes import await_it
from tests.worker.trials import BODY, ROOT, make_allocation, make_trial, outcome_of, workers_below

pytestmark = pytest.mark.slurm
TWO = {"ranks": 4, "num_nodes": 2}


def step(paths: AllocationPaths) -> list[str]:
    options = [
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=2",
        "--mem=4000",
        "--kill-on-bad-exit=1",
        f"--chdir={ROOT}",
    ]
    worker = [sys.executable, "-u", "-m", "egobench.worker", "--slurm", str(paths.allocation), "--body", BODY]
    return ["srun", *options, *worker]


def test_faults_on_the_second_node(cluster: Cluster, tmp_path: Path) -> None:
    trials = [
        make_trial("fine", **TWO),
        make_trial("sigkill", Drill(kind="sigkill", rank=2, step=3, phase="optimizer"), **TWO),
        make_trial("hang", Drill(kind="hang", rank=3, step=3, phase="backward"), **TWO),
        make_trial("after", **TWO),
    ]
    paths = make_allocation(tmp_path, trials, num_nodes=2, gpus_per_node=2)
    cluster.run(*step(paths), timeout_s=300)
    start = read_document(paths.start(0), Start)
    assert start is not None
    assert start.nodes == ("n1", "n2")
    assert [outcome_of(tmp_path, name).outcome for name in ("fine", "after")] == ["ok", "ok"]
    for name, rank in (("sigkill", 2), ("hang", 3)):
        found = outcome_of(tmp_path, name)
        assert found.failure is not None
        assert found.failure.rank == rank
        assert found.ended_at - found.started_at < 45  # collectives would have waited for 120 s
    assert paths.ended.exists()
    await_it(lambda: workers_below(tmp_path) == [], "processes are left", 30)


def test_warned_requeued_and_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    paths = make_allocation(tmp_path, [make_trial("long", steps=100_000, **TWO)], num_nodes=2, gpus_per_node=2)
    trial = TrialPaths(tmp_path / "long" / "0")
    script = f"#!/bin/sh\n{shlex.join(step(paths))}\n"
    # What egobench's own batch script does; the job is no array.
    code = shlex.quote(str(tmp_path / "code"))
    script += f"echo $? > {code}; [ $(cat {code}) != {EXIT_AGAIN} ] || scontrol requeue $SLURM_JOB_ID\n"
    job = cluster.submit(
        "--nodes=2", "--gpus-per-node=2", "--mem=4000", "--requeue", "--open-mode=append", script=script
    )

    def has_steps() -> bool:
        return trial.rank_steps(3).exists()

    await_it(has_steps, "no step was done", 120)
    cluster.run("scancel", "--signal=USR2", job)
    await_it((tmp_path / "code").exists, "the step did not end", 90)
    await_it(lambda: paths.start(1).exists(), "the job was not started again", 90)
    assert (tmp_path / "code").read_text() == f"{EXIT_AGAIN}\n"
    first = read_document(trial.attempts / "1" / "outcome.json", Outcome) or read_document(trial.outcome, Outcome)
    assert first is not None
    assert (first.outcome, first.interrupted) == ("preempted", True)

    await_it(lambda: (trial.attempts / "1").exists() and has_steps(), "no step was done again", 120)
    cluster.run("scancel", job)
    await_it(trial.interrupted.exists, "the worker left no mark", 60)
    mark = read_document(trial.interrupted, Interruption)
    assert mark is not None
    assert (mark.start, mark.attempt) == (1, 2)
    assert not trial.outcome.exists()
    assert not paths.ended.exists()
    await_it(lambda: workers_below(tmp_path) == [], "processes are left", 30)
