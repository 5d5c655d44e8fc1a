"""What real clusters printed (`queue_samples/`), and what we make of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from egobench.launch.queue.poll import Answer, ask, can_never_start
from egobench.launch.queue.text import read_squeue
from egobench.records.queue import QueueView
from egobench.records.store import SweepPaths
from tests.launch.recordings import EPOCH, SAMPLES, Clock, Recording

LIVE = ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING", "REQUEUE_HOLD")


def play(
    name: str, folder: Path, every_s: float = 1.0, first_s: float = 0.5
) -> tuple[Recording, list[tuple[float, QueueView]]]:
    recording, clock, calls = Recording.load(name), Clock(EPOCH + first_s), []

    def run(command: Sequence[str]) -> Answer:
        calls.append(clock.at)
        return recording.answer(command, clock.at)

    views = []
    while clock.at < EPOCH + recording.length_s + 8 * every_s + 20:
        views.append((clock.at - EPOCH, ask(SweepPaths(folder), recording.jobs, every_s, clock, run)))
        clock.at += 0.5
    assert all(later - earlier >= every_s for earlier, later in itertools.pairwise(calls)), "too many calls"
    return recording, views


STORIES = {path.stem for path in SAMPLES.glob("*.txt")}


@pytest.mark.parametrize("every_s", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("name", sorted(STORIES))
def test_what_is_called_over_never_comes_back(name: str, every_s: float, tmp_path: Path) -> None:
    for phase in (0.5, 2.0):
        recording, views = play(name, tmp_path / str(phase), every_s, phase)
        over_at = {}
        for at, view in views:
            for job_id, state in view.jobs.items():
                if state.activity == "over":
                    over_at.setdefault(job_id, at)
        for at, command, answer in recording.frames:
            for row in read_squeue(answer.text) if command == "squeue" else ():
                assert row.state not in LIVE or at <= over_at.get(row.job_id, at), (
                    f"{row.job_id} is {row.state} at {at}"
                )


ENDINGS: dict[str, dict[str, tuple[str, str]]] = {
    "exits": {
        "1_0": ("COMPLETED", "over"), "1_1": ("FAILED", "over"), "1_2": ("FAILED", "over"), "1_3": ("FAILED", "over"),
        "1_4": ("FAILED", "over"),
    },
    "cancelled": {
        "1_0": ("CANCELLED", "over"), "1_1": ("CANCELLED", "over"), "1_2": ("CANCELLED", "over"),
        "1_3": ("CANCELLED", "over"),
    },
    "node_crash": {"1": ("COMPLETED", "over"), "2": ("NODE_FAIL", "over"), "3": ("COMPLETED", "over")},
    "preempted": {"1": ("COMPLETED", "over"), "2": ("PREEMPTED", "over")},
    "requeued": {"1": ("COMPLETED", "over"), "2": ("CANCELLED", "over")},
    "time_limit": {"1": ("TIMEOUT", "over"), "3": ("DEADLINE", "over")},
    # The second was submitted too short before the kill to be remembered; accounting says RUNNING for ever.
    "controller_down": {"1": ("PENDING", "waiting"), "2": ("RUNNING", "unknown")},
    "database_down": {"1": ("CANCELLED", "over")},
    "never": {
        "1": ("PENDING", "waiting"), "2": ("PENDING", "waiting"), "3": ("FAILED", "over"), "4": ("PENDING", "waiting"),
        "5": ("PENDING", "waiting"), "6": ("PENDING", "waiting"), "7": ("RUNNING", "active"),
        "8": ("PENDING", "waiting"), "9": ("SUSPENDED", "active"),
    },
    "no_accounting": {
        "1": ("COMPLETED", "over"), "2": ("FAILED", "over"), "3_0": ("CANCELLED", "over"),
        "3_1": ("CANCELLED", "over"), "3_2": ("RUNNING", "active"), "4": ("NODE_FAIL", "over"),
    },
    "forgotten": {"1": ("", "over")},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ENDINGS))
def test_how_the_story_ends(name: str, tmp_path: Path) -> None:
    _, views = play(name, tmp_path)
    last = views[-1][1].jobs
    assert {job_id: (state.state, state.activity) for job_id, state in last.items()} == ENDINGS[name]
    assert not views[-1][1].problem


def test_every_recording_has_an_expected_end() -> None:
    assert set(ENDINGS) == STORIES


def test_details_of_exits(tmp_path: Path) -> None:
    last = play("exits", tmp_path)[1][-1][1].jobs
    assert (last["1_1"].exit_code, last["1_2"].signal, last["1_3"].signal) == (3, 9, 9)
    assert last["1_3"].derived_exit_code == 137
    killed = last["1_4"]  # above its memory: FAILED, not OUT_OF_MEMORY, on a cluster without cgroups
    assert killed.memory_bytes == 200 << 20 and (killed.max_rss_bytes or 0) > 200 << 20
    assert killed.source == "sacct" and killed.nodes == "n1" and killed.elapsed_s == 2


def test_a_waiting_array_task_that_is_cancelled_vanishes_without_a_trace(tmp_path: Path) -> None:
    recording, views = play("cancelled", tmp_path)
    assert not any(" CANCELLED" in a.text for _, _, a in recording.frames if "1_2|" in a.text), "then it is no trap"
    assert "while it waited" in views[-1][1].jobs["1_2"].reason
    assert views[-1][1].jobs["1_0"].reason == f"by uid {0}"
    waiting = [view.jobs["1_1"] for _, view in views if view.jobs["1_1"].state == "PENDING"]
    assert waiting[-1].activity == "waiting" and waiting[-1].reason == "JobArrayTaskLimit"


def test_a_node_crash_that_is_followed_by_another_start(tmp_path: Path) -> None:
    _, views = play("node_crash", tmp_path)
    states = [view.jobs["1"].state for _, view in views]
    assert "NODE_FAIL" not in states  # sacct says so for 17 s; squeue knows better
    last = views[-1][1].jobs["1"]
    assert last.restarts == 1 and last.elapsed_s == 11  # 3 s before the crash and 8 s after it


def test_a_preempted_job_that_is_started_again_is_not_over_in_between(tmp_path: Path) -> None:
    _, views = play("preempted", tmp_path)
    told = [(view.jobs["1"].state, view.jobs["1"].restarts) for _, view in views]
    assert ("RUNNING", 0) in told and ("RUNNING", 1) in told
    assert not any(state == "PREEMPTED" for state, _ in told)


def test_a_held_requeue_waits_until_somebody_acts(tmp_path: Path) -> None:
    _, views = play("requeued", tmp_path)
    held = [view.jobs["2"] for _, view in views if view.jobs["2"].restarts == 1 and view.jobs["2"].state == "PENDING"]
    assert {state.activity for state in held} == {"waiting"} and can_never_start(held[-1].reason)
    last = views[-1][1].jobs
    assert last["1"].elapsed_s == 8 and last["1"].reason == ""  # accounting still says BeginTime
    assert last["2"].reason == "by uid 0"


def test_a_controller_that_comes_back(tmp_path: Path) -> None:
    _, views = play("controller_down", tmp_path)
    problems = [view.problem for _, view in views]
    away = next(index for index, problem in enumerate(problems) if "Unable to contact" in problem)
    assert {state.state for state in views[away][1].jobs.values()} == {"RUNNING"}
    assert problems[-1] == ""
    assert can_never_start(views[-1][1].jobs["1"].reason)  # "launch failed requeued held"


def test_a_database_that_is_away_does_not_hide_an_end(tmp_path: Path) -> None:
    _, views = play("database_down", tmp_path)
    assert any("accounting does not answer" in view.problem for _, view in views)
    assert views[-1][1].problem == ""


def test_why_jobs_wait(tmp_path: Path) -> None:
    last = play("never", tmp_path)[1][-1][1].jobs
    assert {job_id: state.reason for job_id, state in last.items() if state.activity == "waiting"} == {
        "1": "JobHeldUser",
        "2": "BeginTime",
        "4": "DependencyNeverSatisfied",
        "5": "PartitionNodeLimit",
        "6": "JobHeldAdmin",
        "8": "Resources",
    }
