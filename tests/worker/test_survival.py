"""What Slurm does to a job: warnings, signals, restarts. Every attempt keeps its record, every trial has one end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from egobench.errors import EXIT_AGAIN, EXIT_ENVIRONMENT, EXIT_INTERRUPTED
from egobench.records.allocation import AllocationPaths, Claim, Ended, Interruption, Start, last_start, living_claim
from egobench.records.outcome import Outcome
from egobench.records.store import TrialPaths, read_document, write_document
from egobench.records.trial import Drill
from egobench.records.usage import Usage
from tests.worker.nodes import are_gone, await_it, await_steps, start_task
from tests.worker.trials import make_allocation, make_trial, outcome_of

SCONTROL = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
[ "$1" = show ] && echo "JobId=7 PreemptTime=None Requeue=1"
exit {code}
"""


def scontrol(folder: Path, code: int = 0) -> dict[str, str]:
    """A scontrol that writes down what it was asked."""
    folder.mkdir()
    (folder / "scontrol").write_text(SCONTROL.format(code=code))
    (folder / "scontrol").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def signal_step(worker: subprocess.Popen[bytes], pids: list[int], number: signal.Signals) -> None:
    """Slurm signals all processes of a step, the ranks first if chance will have it."""
    children = subprocess.run(["pgrep", "-P", str(worker.pid)], capture_output=True, text=True, check=False).stdout
    for pid in [*pids, *map(int, children.split()), worker.pid]:
        os.kill(pid, number)


def archived(trial: TrialPaths, attempt: int) -> Outcome:
    found = read_document(trial.attempts / str(attempt) / "outcome.json", Outcome)
    assert found is not None
    return found


def test_a_warning_gives_the_trial_back(tmp_path: Path) -> None:
    asked = tmp_path / "bin" / "asked"
    tools = scontrol(tmp_path / "bin")
    trials = [make_trial("short", ranks=1, steps=2), make_trial("long", steps=10_000)]
    paths = make_allocation(tmp_path / "s", trials, gpus_per_node=2, time_limit_min=2)
    trial = TrialPaths(tmp_path / "s" / "long" / "0")
    worker = start_task(paths, "7", **tools)
    pids = await_steps(trial, 2)
    signal_step(worker, pids, signal.SIGUSR2)
    assert worker.wait(timeout=120) == EXIT_AGAIN, paths.log.read_text()
    found = outcome_of(tmp_path / "s", "long")
    assert (found.outcome, found.interrupted, found.attempt) == ("timeout", True, 1)  # two minutes are near the end
    assert found.measures is not None
    assert asked.read_text().splitlines() == ["show job -o 7"]  # the batch script does the rest
    assert not paths.ended.exists()
    assert are_gone(pids)

    # Started again by Slurm, and told by scancel, or whoever, to end: only Slurm knows why.
    worker = start_task(paths, "7", restarts=1, **tools)
    pids = await_steps(trial, 2, other_than=tuple(pids))
    assert archived(trial, 1) == found
    signal_step(worker, pids, signal.SIGTERM)
    assert worker.wait(timeout=120) == EXIT_INTERRUPTED
    assert are_gone(pids)
    mark = read_document(trial.interrupted, Interruption)
    assert mark is not None
    assert (mark.start, mark.attempt, mark.signal) == (1, 2, "SIGTERM")
    assert not trial.outcome.exists()
    assert not paths.ended.exists()

    # A third start: preemption it was. A fourth while it runs: the third ends, and says nothing.
    worker = start_task(paths, "7", restarts=2, **tools)
    pids = await_steps(trial, 2, other_than=tuple(pids))
    assert (archived(trial, 2).outcome, archived(trial, 2).interrupted) == ("preempted", True)
    newer = start_task(paths, "7", restarts=3, **tools)
    assert worker.wait(timeout=120) == EXIT_ENVIRONMENT
    assert newer.wait(timeout=120) == 0, paths.log.read_text()
    assert are_gone(pids)
    last = outcome_of(tmp_path / "s", "long")
    assert (last.outcome, last.attempt, last.interrupted) == ("node_fail", 3, True)  # attempts are used up: final
    assert outcome_of(tmp_path / "s", "short").attempt == 1
    ended = read_document(paths.ended, Ended)
    assert ended is not None
    assert ended.exit_code == 0
    usage = read_document(paths.usage, Usage)
    assert usage is not None
    assert [span.start for span in usage.spans] == [0, 1, 2, 3]
    assert all(span.lost_s > 0 for span in usage.spans[:3])


def test_not_again_without_progress(tmp_path: Path) -> None:
    paths = make_allocation(tmp_path, [make_trial("long", steps=10_000)], gpus_per_node=2)
    trial = TrialPaths(tmp_path / "long" / "0")
    for number in range(2):
        write_document(paths.start(number), Start(number=number, nodes=("n",), pid=1, at=1.0))
    worker = start_task(paths, "7", restarts=2)
    pids = await_steps(trial, 2)
    signal_step(worker, pids, signal.SIGUSR2)
    assert worker.wait(timeout=120) == 0
    assert outcome_of(tmp_path, "long").outcome == "preempted"  # no time limit is near
    ended = read_document(paths.ended, Ended)
    assert ended is not None
    assert "3 starts in a row brought no trial to its end" in ended.because
    usage = read_document(paths.usage, Usage)
    assert usage is not None
    assert usage.spans[-1].whole


def test_what_was_given_up_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """Slurm lost our node, and the driver settled the job; now the node is back."""
    paths = make_allocation(tmp_path, [make_trial("long", steps=10_000)], gpus_per_node=2)
    trial = TrialPaths(tmp_path / "long" / "0")
    worker = start_task(paths, "7")
    pids = await_steps(trial, 2)
    ended = Ended(exit_code=1, because="lost a node", at=1.0)
    write_document(paths.ended, ended)
    assert worker.wait(timeout=120) == EXIT_ENVIRONMENT
    assert are_gone(pids)
    assert not trial.outcome.exists()
    assert read_document(paths.ended, Ended) == ended


def test_no_outcome_for_somebody_elses_attempt(tmp_path: Path) -> None:
    paths = make_allocation(tmp_path, [make_trial("long", steps=400)], gpus_per_node=2)
    trial = TrialPaths(tmp_path / "long" / "0")
    worker = start_task(paths, "7")
    await_steps(trial, 2)
    held = read_document(trial.running, Claim)
    assert held is not None
    theirs = held.model_copy(update={"allocation": 2, "attempt": 2})
    write_document(trial.running, theirs)
    assert worker.wait(timeout=120) == EXIT_ENVIRONMENT, paths.log.read_text()
    assert read_document(trial.running, Claim) == theirs
    left = [path for path in (trial.outcome, trial.steps, *trial.ranks.glob("*.json")) if path.exists()]
    assert left == []


@pytest.mark.slow
def test_a_suspended_trial_is_launched_again(tmp_path: Path) -> None:
    paths = make_allocation(tmp_path, [make_trial("long", steps=300)], gpus_per_node=2)
    trial = TrialPaths(tmp_path / "long" / "0")
    worker = start_task(paths, "7")
    pids = await_steps(trial, 2)
    signal_step(worker, pids, signal.SIGSTOP)
    time.sleep(11)
    signal_step(worker, pids, signal.SIGCONT)
    assert worker.wait(timeout=120) == 0, paths.log.read_text()
    first = archived(trial, 1)
    assert (first.outcome, first.interrupted) == ("preempted", True)
    assert re.search(r"suspended for 1\d s", first.because)
    assert outcome_of(tmp_path, "long").outcome == "ok"


@pytest.mark.slow
def test_parents_and_budget(tmp_path: Path) -> None:
    trials = [
        make_trial("bad", Drill(kind="raise", rank=0, step=1, phase="forward"), ranks=1),
        make_trial("good", ranks=1, steps=3),
        make_trial("child-of-bad", ranks=1),
        make_trial("grandchild", ranks=1),
        make_trial("child-of-good", ranks=1, steps=3),
        make_trial("orphan", ranks=1),
        make_trial("long", ranks=1, steps=100_000),
    ]
    parents = {"child-of-bad": "bad", "grandchild": "child-of-bad", "child-of-good": "good", "orphan": "elsewhere"}
    paths = make_allocation(tmp_path, trials, parents, gpu_hours_at_most=30 / 3600)
    began = time.time()
    assert start_task(paths, "7").wait(timeout=170) == 0
    for name, parent in (("child-of-bad", "bad"), ("grandchild", "child-of-bad")):
        found = outcome_of(tmp_path, name)
        assert found.outcome == "parent_failed"
        assert parent in found.because
        assert not TrialPaths(tmp_path / name / "0").log.exists()  # nothing was launched
    assert outcome_of(tmp_path, "child-of-good").outcome == "ok"
    assert not TrialPaths(tmp_path / "orphan" / "0").outcome.exists()
    found = outcome_of(tmp_path, "long")
    assert (found.outcome, found.interrupted) == ("timeout", True)
    ended = read_document(paths.ended, Ended)
    assert ended is not None
    assert "GPU-hours" in ended.because

    usage = read_document(paths.usage, Usage)
    assert usage is not None
    (span,) = usage.spans
    assert span.total_s == pytest.approx(ended.at - span.began_at, abs=5)
    assert 0 < span.total_s <= time.time() - began + 2  # the machine's start is known to the second
    measured = sum(
        outcome.measures.step_time_s * outcome.measures.num_steady_steps
        for name in ("good", "child-of-good")
        if (outcome := outcome_of(tmp_path, name)).measures is not None
    )
    assert span.measured_s == pytest.approx(measured)
    assert span.lost_s > 1
    assert span.startup_s > 1
    assert span.num_trials == 4

    # What is used up is used up: the next start runs nothing.
    paths.ended.unlink()
    assert start_task(paths, "7", restarts=1).wait(timeout=120) == 0
    assert outcome_of(tmp_path, "long") == found


def test_a_trial_that_runs_elsewhere_is_left_alone(tmp_path: Path) -> None:
    paths = make_allocation(tmp_path, [make_trial("long", ranks=1, steps=10_000)])
    trial = TrialPaths(tmp_path / "long" / "0")
    other = AllocationPaths(paths.folder.parent / "2")
    other.folder.mkdir()
    other.allocation.write_bytes(paths.allocation.read_bytes())
    worker = start_task(paths, "7")
    try:
        await_steps(trial, 1)
        held = living_claim(trial)
        assert held is not None
        assert start_task(other, "8").wait(timeout=120) == 0
        assert living_claim(trial) == held
        assert last_start(other) == 0
    finally:
        worker.kill()
    await_it(lambda: worker.poll() is not None, "the worker did not end")
