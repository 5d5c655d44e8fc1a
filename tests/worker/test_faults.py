"""Every rehearsed failure ends its trial with the right outcome, rank, phase and step; the next trial is untouched."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from egobench.records.outcome import Outcome
from egobench.records.store import TrialPaths
from egobench.records.trial import Drill
from tests.worker.nodes import are_gone, await_it, await_steps
from tests.worker.trials import (
    make_allocation,
    make_trial,
    outcome_of,
    start_worker,
    workers_below,
)

DRILLS = {
    "oom": Drill(kind="oom", rank=1, step=3, phase="forward"),
    "host_oom": Drill(kind="host_oom", rank=1, step=2, phase="data"),
    "nan": Drill(kind="nan", rank=1, step=3, phase="forward"),
    "hang": Drill(kind="hang", rank=1, step=3, phase="backward"),
    "sigkill": Drill(kind="sigkill", rank=1, step=4, phase="optimizer"),
    "raise": Drill(kind="raise", rank=1, step=0, phase="data"),
    "at_load": Drill(kind="raise", rank=0, step=-1, phase="load"),
}
EXPECTED = {
    "oom": ("oom", 1, "forward", 3),
    "host_oom": ("host_oom", 1, "data", 2),
    "nan": ("diverged", 1, "optimizer", 3),
    "hang": ("hang", 1, "backward", 3),
    "sigkill": ("crash", 1, "optimizer", 4),
    "raise": ("crash", 1, "data", 0),
    "at_load": ("crash", 0, "load", -1),
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One allocation: every fault, a fine trial after each."""
    folder = tmp_path_factory.mktemp("faults")
    trials = []
    for name, drill in DRILLS.items():
        trials += [make_trial(name, drill), make_trial(f"{name}-after", steps=2)]
    worker = start_worker(make_allocation(folder, trials).allocation)
    said, _ = worker.communicate(timeout=400)
    assert worker.returncode == 0, said
    assert "Traceback" not in said, said
    return folder


@pytest.mark.parametrize("name", DRILLS)
def test_fault_is_named(swept: Path, name: str) -> None:
    found = outcome_of(swept, name)
    assert found.failure is not None
    failure = found.failure
    assert (found.outcome, failure.rank, failure.phase, failure.step) == EXPECTED[name]
    assert found.ended_at - found.started_at < 60
    assert found.because.startswith(f"rank {failure.rank}, {failure.phase}")
    assert not TrialPaths(swept / name / "0").running.exists()


@pytest.mark.parametrize("name", DRILLS)
def test_next_trial_is_fine(swept: Path, name: str) -> None:
    found = outcome_of(swept, f"{name}-after")
    assert found.outcome == "ok"
    assert found.measures is not None
    assert found.measures.num_steps == 2
    assert found.launch_s is not None
    assert found.launch_s > 0


def test_oom_says_how_much(swept: Path) -> None:
    failure = outcome_of(swept, "oom").failure
    assert failure is not None
    assert failure.requested_bytes == 2**60
    assert failure.free_bytes is not None
    assert 0 < failure.free_bytes < 2**50
    assert "DefaultCPUAllocator" in failure.log_tail


def test_steps_before_the_failure_are_kept(swept: Path) -> None:
    found = outcome_of(swept, "oom")
    assert found.measures is not None
    assert found.measures.num_steps in (2, 3)  # the other rank may be ended before it has noted step 2


def test_hang_shows_where_the_rank_stands(swept: Path) -> None:
    failure = outcome_of(swept, "hang").failure
    assert failure is not None
    assert "in _hang" in failure.log_tail  # faulthandler's stack


def test_nothing_is_left_running(swept: Path) -> None:
    assert workers_below(swept) == []


def test_busy_is_not_hung(tmp_path: Path) -> None:
    drill = Drill(kind="slow", rank=1, step=1, phase="forward")  # what is too long for a busy one is not known yet
    paths = make_allocation(tmp_path, [make_trial("slow", drill)])
    start_worker(paths.allocation).communicate(timeout=120)
    assert outcome_of(tmp_path, "slow").outcome == "ok"


def test_time_limit(tmp_path: Path) -> None:
    paths = make_allocation(tmp_path, [make_trial("long", steps=10_000, trial_time_limit_s=6)])
    start_worker(paths.allocation).communicate(timeout=120)
    found = outcome_of(tmp_path, "long")
    assert found.outcome == "timeout"
    assert found.failure is not None
    assert found.failure.step > 0


def test_killed_allocation_takes_its_ranks_along(tmp_path: Path) -> None:
    paths = make_allocation(tmp_path, [make_trial("long", steps=10_000)])
    trial = TrialPaths(tmp_path / "long" / "0")
    worker = start_worker(paths.allocation)
    pids = await_steps(trial, 2, timeout_s=60)
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    await_it(lambda: are_gone(pids), "ranks outlived their allocation", 30)
    assert not trial.outcome.exists()

    # The same again: attempt 2, with what attempt 1 left moved aside.
    worker = start_worker(paths.allocation)
    await_steps(trial, 2, other_than=tuple(pids), timeout_s=60)
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=60)
    found = Outcome.model_validate_json(trial.outcome.read_text())
    assert (found.outcome, found.attempt) == ("cancelled", 2)
    assert (trial.attempts / "1" / "ranks" / "0.jsonl").exists()
    assert (trial.attempts / "1" / "running.json").exists()


def test_replay_by_hand(tmp_path: Path) -> None:
    make_allocation(tmp_path, [make_trial("one", ranks=1, steps=2)])
    document = tmp_path / "one" / "0" / "trial.json"
    for options, code, attempt in (((), 0, 1), ((), 2, 1), (("--again",), 0, 2)):
        worker = start_worker(document, *options)
        said, _ = worker.communicate(timeout=120)
        assert worker.returncode == code, said
        assert outcome_of(tmp_path, "one").attempt == attempt
