"""A trial over two nodes: whatever happens, on whichever node, ends it everywhere and is blamed on the right rank."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from egobench.errors import EXIT_AGAIN, EXIT_ENVIRONMENT
from egobench.records.outcome import Outcome
from egobench.records.provenance import Binding
from egobench.records.rank import RankReport
from egobench.records.store import TrialPaths, read_document
from egobench.records.trial import Drill
from tests.worker.nodes import are_gone, await_it, await_steps, start_nodes
from tests.worker.trials import make_allocation, make_trial, outcome_of, workers_below

DRILLS = {
    "sigkill": Drill(kind="sigkill", rank=2, step=3, phase="optimizer"),
    "hang": Drill(kind="hang", rank=3, step=3, phase="backward"),
    "oom": Drill(kind="oom", rank=3, step=2, phase="forward"),
    "here": Drill(kind="sigkill", rank=1, step=3, phase="optimizer"),
    "late": Drill(kind="raise", rank=3, step=5, phase="eval"),  # nobody waits for that rank any more
}
EXPECTED = {
    "sigkill": ("crash", 2, "optimizer", 3),
    "hang": ("hang", 3, "backward", 3),
    "oom": ("oom", 3, "forward", 2),
    "here": ("crash", 1, "optimizer", 3),
    "late": ("crash", 3, "eval", 5),
}
CLOCK = "import time\n_real = time.time\ntime.time = lambda: _real() + 100.0\n"
TWO = {"ranks": 4, "num_nodes": 2}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second node's clock is 100 s ahead: by its own times, nothing there would ever have come first."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "clock").mkdir()
    (folder / "clock" / "sitecustomize.py").write_text(CLOCK)
    trials = [make_trial(name, drill, **TWO) for name, drill in DRILLS.items()]
    trials = [make_trial("fine", **TWO, binding="spread"), *trials, make_trial("after", **TWO)]
    paths = make_allocation(folder / "s", trials, num_nodes=2, gpus_per_node=2)
    tasks = start_nodes(paths, f"{os.getpid()}1", second={"PYTHONPATH": str(folder / "clock")})
    codes = [task.wait(timeout=400) for task in tasks]
    assert codes == [0, 0], paths.log.read_text()
    assert "Traceback" not in paths.log.read_text()
    return folder / "s"


@pytest.mark.parametrize("name", DRILLS)
def test_fault_on_any_node_is_named(swept: Path, name: str) -> None:
    found = outcome_of(swept, name)
    assert found.failure is not None
    failure = found.failure
    assert (found.outcome, failure.rank, failure.phase, failure.step) == EXPECTED[name]
    assert found.ended_at - found.started_at < 45  # collectives would have waited for 120 s
    assert failure.log_tail or name in ("sigkill", "here")


@pytest.mark.parametrize("name", ["fine", "after"])
def test_all_ranks_take_part(swept: Path, name: str) -> None:
    found = outcome_of(swept, name)
    assert found.outcome == "ok"
    assert found.measures is not None
    assert found.measures.num_steps == 6
    assert found.launch_s is not None
    assert 0 < found.launch_s < found.ended_at - found.started_at
    paths = TrialPaths(swept / name / "0")
    assert sorted(path.name for path in paths.ranks.glob("*.jsonl")) == ["0.jsonl", "1.jsonl", "2.jsonl", "3.jsonl"]


def test_ranks_are_bound(swept: Path) -> None:
    paths = TrialPaths(swept / "fine" / "0")
    reports = [read_document(paths.rank_report(rank), RankReport) for rank in range(4)]
    bindings = [report.binding for report in reports if report is not None]
    assert all(isinstance(binding, Binding) and binding.cpus for binding in bindings)
    assert [binding.rank for binding in bindings if binding is not None] == [0, 1, 2, 3]


def test_nothing_is_left_running(swept: Path) -> None:
    await_it(lambda: workers_below(swept) == [], "processes are left", 30)


@pytest.mark.slow
def test_a_lost_node_is_told_and_its_leader_missed(tmp_path: Path) -> None:
    paths = make_allocation(tmp_path, [make_trial("long", steps=10_000, **TWO)], num_nodes=2, gpus_per_node=2)
    trial = TrialPaths(tmp_path / "long" / "0")
    leader, follower = start_nodes(paths, f"{os.getpid()}2")
    pids = await_steps(trial, 4)
    follower.kill()
    assert leader.wait(timeout=60) == EXIT_AGAIN
    assert are_gone(pids)
    found = read_document(trial.outcome, Outcome)
    assert found is not None
    assert (found.outcome, found.interrupted) == ("node_fail", True)
    assert "egonode2" in found.because
    assert not paths.ended.exists()

    leader, follower = start_nodes(paths, f"{os.getpid()}2", restarts=1)
    pids = await_steps(trial, 4, other_than=tuple(pids))
    leader.send_signal(signal.SIGKILL)
    assert follower.wait(timeout=60) == EXIT_ENVIRONMENT
    await_it(lambda: are_gone(pids), "ranks outlived their allocation", 30)
    archived = read_document(trial.attempts / "1" / "outcome.json", Outcome)
    assert archived == found
    assert not trial.outcome.exists()
