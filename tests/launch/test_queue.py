"""Our own view of Slurm's jobs, where Slurm says what the test wants; see also test_queue_samples.py."""

from __future__ import annotations

import json
import os
import resource
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from egobench.launch.queue.poll import Answer, ask, pause_s, run_command, state_of
from egobench.launch.queue.states import SILENCE_S
from egobench.records.allocation import Job
from egobench.records.queue import JobState, QueueView
from egobench.records.store import SweepPaths, read_document, write_document
from tests.launch.recordings import EPOCH, Clock, job


class Script:
    """A Slurm that says what the test wants."""

    def __init__(self, squeue: str = "", sacct: str = "") -> None:
        self.squeue, self.sacct = Answer(squeue), Answer(sacct)
        self.calls: list[str] = []

    def __call__(self, command: Sequence[str]) -> Answer:
        self.calls.append(command[0])
        return self.squeue if command[0] == "squeue" else self.sacct


HEADER = "JobID|JobName|State|ExitCode|DerivedExitCode|ElapsedRaw|MaxRSS|ReqMem|NNodes|NodeList|Reason\n"


def listed(state: str, job_id: str = "7_0", reason: str = "None", code: int = 0, restarts: int = 0) -> str:
    return f"{job_id}|ego-1|{state}|{restarts}|{code}|0|0:05|n1|{reason}|\n"


def recorded(state: str, job_id: str = "7_0", name: str = "ego-1", code: str = "0:0", rss: str = "") -> str:
    return f"{job_id}|{name}|{state}|{code}|0:0|5||200M|1|n1|None\n{job_id}.batch|batch|x|0:0||5|{rss}||1|n1|\n"


def watch(
    folder: Path,
    slurm: Callable[[Sequence[str]], Answer],
    seconds: float,
    jobs: Sequence[Job] = (),
    clock: Clock | None = None,
) -> list[QueueView]:
    """Ask once a second."""
    clock = clock or Clock(EPOCH + 60)
    views = []
    for _ in range(int(seconds)):
        views.append(ask(SweepPaths(folder), list(jobs) or [job("7_0")], 1.0, clock, slurm))
        clock.at += 1.0
    return views


def end(folder: Path, slurm: Script, seconds: float = 12) -> JobState:
    return watch(folder, slurm, seconds)[-1].jobs["7_0"]


# ---------------------------------------------------------------- what this machine's Slurm cannot be made to do


@pytest.mark.parametrize(
    "state", ["OUT_OF_MEMORY", "DEADLINE", "TIMEOUT", "FAILED", "COMPLETED", "BOOT_FAIL", "NODE_FAIL"]
)
def test_an_end_in_both(state: str, tmp_path: Path) -> None:
    slurm = Script(listed(state), HEADER + recorded(state, rss="123M"))
    found = end(tmp_path, slurm)
    assert (found.state, found.activity, found.source) == (state, "over", "sacct")
    assert found.max_rss_bytes == 123 << 20


@pytest.mark.parametrize("state", ["REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "PENDING", "REQUEUE_FED"])
def test_states_that_wait(state: str, tmp_path: Path) -> None:
    found = end(tmp_path, Script(listed(state, reason="JobHeldUser"), HEADER + recorded("NODE_FAIL")), 20)
    assert (found.state, found.activity, found.reason) == (state, "waiting", "JobHeldUser")


@pytest.mark.parametrize(
    "state", ["RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "CONFIGURING", "RESIZING", "STAGE_OUT"]
)
def test_states_that_hold_nodes(state: str, tmp_path: Path) -> None:
    found = end(tmp_path, Script(listed(state), HEADER + recorded("COMPLETED")), 20)
    assert (found.state, found.activity, found.nodes) == (state, "active", "n1")


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED", "BOOT_FAIL"])
def test_an_end_that_may_be_followed_by_a_start_is_not_believed_at_once(state: str, tmp_path: Path) -> None:
    slurm = Script(listed(state), HEADER + recorded(state))
    clock = Clock(EPOCH + 60)
    early = watch(tmp_path, slurm, 4, clock=clock)
    assert {view.jobs["7_0"].activity for view in early} == {"unknown"}
    slurm.squeue = Answer(listed("PENDING", restarts=1))
    assert watch(tmp_path, slurm, 2, clock=clock)[-1].jobs["7_0"].activity == "waiting"
    slurm.squeue = Answer(listed(state, restarts=1))
    last = watch(tmp_path, slurm, 12, clock=clock)[-1].jobs["7_0"]
    assert (last.activity, last.state, last.restarts) == ("over", state, 1)


def test_squeue_is_believed_before_accounting_that_lags(tmp_path: Path) -> None:
    found = end(tmp_path, Script(listed("FAILED", code=768), HEADER + recorded("RUNNING")), 15)
    assert (found.state, found.activity, found.exit_code, found.source) == ("FAILED", "over", 3, "squeue")


def test_an_earlier_end_in_accounting_is_not_taken_for_the_last(tmp_path: Path) -> None:
    views = watch(tmp_path, Script(listed("FAILED", code=768, restarts=1), HEADER + recorded("PREEMPTED")), 15)
    assert {view.jobs["7_0"].state for view in views[1:]} == {"FAILED"} and views[-1].jobs["7_0"].activity == "over"


def test_accounting_shows_a_node_failure_of_a_job_that_squeue_has_forgotten(tmp_path: Path) -> None:
    slurm = Script("", HEADER + recorded("REQUEUED") + recorded("NODE_FAIL"))
    views = watch(tmp_path, slurm, 12)
    assert views[2].jobs["7_0"].activity != "over"
    assert (views[-1].jobs["7_0"].state, views[-1].jobs["7_0"].activity) == ("NODE_FAIL", "over")
    assert views[-1].jobs["7_0"].elapsed_s == 10 and views[-1].jobs["7_0"].restarts == 1


def test_a_job_id_that_was_given_out_again(tmp_path: Path) -> None:
    strange = Script(
        "7_0|other|RUNNING|0|0|0|0:05|n1|None|\n",
        HEADER + recorded("COMPLETED", name="other") + recorded("FAILED", code="2:0"),
    )
    found = end(tmp_path, strange)
    assert (found.state, found.activity, found.exit_code) == ("FAILED", "over", 2)
    (tmp_path / "queue.json").unlink()
    later = Script("", HEADER + recorded("FAILED", code="2:0") + recorded("COMPLETED", name="other"))
    assert end(tmp_path, later).state == "FAILED"
    mine = job("7_0", "ego-2", EPOCH + 70)
    view = QueueView(asked_at=EPOCH, jobs={"7_0": found})
    assert state_of(view, mine).activity == "over" and state_of(view, mine).state == ""
    both = watch(tmp_path, Script("7_0|ego-2|RUNNING|0|0|0|0:05|n1|None|\n"), 3, [job("7_0"), mine], Clock(EPOCH + 80))
    assert both[-1].jobs["7_0"].job_name == "ego-2" and both[-1].jobs["7_0"].activity == "active"


def test_a_job_that_was_just_submitted_may_be_unknown(tmp_path: Path) -> None:
    slurm = Script("", HEADER)
    clock = Clock()
    assert watch(tmp_path, slurm, 20, clock=clock)[-1].jobs["7_0"].activity == "waiting"
    assert set(slurm.calls) == {"squeue"}
    found = watch(tmp_path, slurm, 120, clock=clock)[-1].jobs["7_0"]
    assert (found.state, found.activity) == ("", "over")


def test_a_job_whose_end_accounting_never_shows_is_given_up(tmp_path: Path) -> None:
    slurm = Script(listed("RUNNING"), HEADER + recorded("RUNNING"))
    clock = Clock(EPOCH + 60)
    watch(tmp_path, slurm, 3, clock=clock)
    slurm.squeue = Answer("")
    assert watch(tmp_path, slurm, 100, clock=clock)[-1].jobs["7_0"].activity == "unknown"
    found = watch(tmp_path, slurm, 40, clock=clock)[-1].jobs["7_0"]
    assert (found.state, found.activity, found.reason) == ("", "over", "last seen RUNNING")


DISABLED = Answer(problem="Slurm accounting storage is disabled")


def test_without_accounting_squeue_is_enough(tmp_path: Path) -> None:
    slurm = Script(listed("RUNNING"))
    slurm.sacct = DISABLED
    clock = Clock(EPOCH + 60)
    watch(tmp_path, slurm, 3, clock=clock)
    slurm.squeue = Answer("")
    last = watch(tmp_path, slurm, 12, clock=clock)[-1]
    assert (last.jobs["7_0"].state, last.jobs["7_0"].activity, last.problem) == ("", "over", "")
    assert slurm.calls.count("sacct") == 1  # it said so once; nobody asks again


def test_without_accounting_a_job_that_left_the_queue_unseen_may_have_run(tmp_path: Path) -> None:
    slurm = Script(listed("PENDING"))
    slurm.sacct = DISABLED
    clock = Clock(EPOCH + 60)
    watch(tmp_path, slurm, 3, clock=clock)
    slurm.squeue = Answer("")
    clock.at += 3600  # nobody looked
    last = watch(tmp_path, slurm, 12, clock=clock)[-1].jobs["7_0"]
    assert (last.state, last.activity, last.reason) == ("", "over", "last seen PENDING")


def test_a_waiting_job_is_not_taken_for_cancelled_while_accounting_is_away(tmp_path: Path) -> None:
    slurm = Script(listed("PENDING"))
    slurm.sacct = Answer(problem="Connection refused")
    clock = Clock(EPOCH + 60)
    watch(tmp_path, slurm, 3, clock=clock)
    slurm.squeue = Answer("")
    assert watch(tmp_path, slurm, 60, clock=clock)[-1].jobs["7_0"].activity != "over"
    slurm.sacct = Answer(HEADER + recorded("COMPLETED"))
    assert watch(tmp_path, slurm, 12, clock=clock)[-1].jobs["7_0"].state == "COMPLETED"


def test_sacct_that_does_not_answer_leaves_what_was_known(tmp_path: Path) -> None:
    slurm = Script(listed("RUNNING"))
    slurm.sacct = Answer(problem="sacct: error: Problem talking to the database: Connection refused")
    clock = Clock(EPOCH + 60)
    watch(tmp_path, slurm, 3, clock=clock)
    slurm.squeue = Answer("")
    views = watch(tmp_path, slurm, 100, clock=clock)
    assert (views[-1].jobs["7_0"].state, views[-1].jobs["7_0"].activity) == ("RUNNING", "unknown")
    assert all("accounting does not answer" in view.problem for view in views[3:])
    slurm.squeue = Answer(listed("FAILED", code=768))  # the controller's own word is enough after a while
    assert watch(tmp_path, slurm, 30, clock=clock)[-1].jobs["7_0"].activity == "over"


def test_a_controller_that_is_away_leaves_what_was_known_and_is_asked_less_often(tmp_path: Path) -> None:
    slurm = Script(listed("RUNNING"))
    clock = Clock(EPOCH + 60)
    watch(tmp_path, slurm, 2, clock=clock)
    slurm.squeue = Answer(problem="slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    slurm.calls.clear()
    view = watch(tmp_path, slurm, 60, clock=clock)[-1]
    assert "Unable to contact" in view.problem
    assert (view.jobs["7_0"].state, view.jobs["7_0"].activity) == ("RUNNING", "active")
    assert len(slurm.calls) <= 14
    slurm.squeue = Answer(listed("RUNNING"))
    assert watch(tmp_path, slurm, 8, clock=clock)[-1].problem == ""


def test_one_id_that_is_unknown_is_an_answer(tmp_path: Path) -> None:
    slurm = Script("", HEADER + recorded("CANCELLED by 1000"))
    slurm.squeue = Answer(problem="slurm_load_jobs error: Invalid job id specified")
    found = end(tmp_path, slurm)
    assert (found.state, found.activity, found.reason) == ("CANCELLED", "over", "by uid 1000")


def test_jobs_of_others_that_the_cluster_hides_are_not_taken_for_gone(tmp_path: Path) -> None:
    views = watch(tmp_path, Script("", HEADER), 200, [job("7_0", by="somebody-else")])
    assert {view.jobs["7_0"].activity for view in views} == {"unknown"}


def test_a_job_of_somebody_else_is_over_when_accounting_says_so(tmp_path: Path) -> None:
    """squeue may hide it, or have forgotten it; only a record tells."""
    clock, theirs = Clock(EPOCH + 60), [job("7_0", by="somebody-else")]
    slurm = Script("", HEADER + recorded("RUNNING"))
    views = watch(tmp_path, slurm, SILENCE_S + 100, theirs, clock)
    assert views[-1].jobs["7_0"].activity == "active" and slurm.calls.count("sacct") > 10
    slurm.sacct = Answer(HEADER + recorded("PREEMPTED"))
    assert watch(tmp_path, slurm, 30, theirs, clock)[-1].jobs["7_0"].activity == "unknown"
    slurm.sacct = Answer(HEADER + recorded("PREEMPTED") + recorded("PENDING"))
    assert watch(tmp_path, slurm, 300, theirs, clock)[-1].jobs["7_0"].activity == "waiting"
    slurm.sacct = Answer(HEADER + recorded("PREEMPTED") + recorded("COMPLETED"))
    found = watch(tmp_path, slurm, 30, theirs, clock)[-1].jobs["7_0"]
    assert (found.state, found.activity) == ("COMPLETED", "over")


def test_a_job_of_somebody_else_of_which_nobody_speaks_is_given_up(tmp_path: Path) -> None:
    clock, theirs = Clock(EPOCH + 60), [job("7_0", by="somebody-else")]
    slurm = Script(listed("RUNNING"))
    slurm.sacct = Answer(problem="Slurm accounting storage is disabled")
    watch(tmp_path, slurm, 10, theirs, clock)
    slurm.squeue = Answer("")
    views = watch(tmp_path, slurm, SILENCE_S + 60, theirs, clock)
    assert views[int(SILENCE_S) - 60].jobs["7_0"].activity == "unknown"
    assert (views[-1].jobs["7_0"].state, views[-1].jobs["7_0"].activity) == ("", "over")


# ---------------------------------------------------------------- politeness


def test_one_call_an_interval_over_all_processes(tmp_path: Path) -> None:
    slurm, clock = Script(listed("RUNNING")), Clock(EPOCH + 60)
    asked = [job("7_0"), job("8_1"), job("8_2")]
    for _ in range(5):
        ask(SweepPaths(tmp_path), asked, 10.0, clock, slurm)
        clock.at += 0.5
    assert slurm.calls == ["squeue"]


def test_a_long_quiet_makes_it_ask_less_often_and_news_more_often() -> None:
    asked, running = [job("7_0")], after("RUNNING")
    quiet = QueueView(asked_at=EPOCH + 1000, changed_at=EPOCH, jobs={"7_0": running})
    assert pause_s(quiet, asked, 10.0) == 60.0
    assert pause_s(quiet, asked, 1.0) == 6.0
    assert pause_s(quiet, asked, 120.0) == 120.0
    assert pause_s(quiet.model_copy(update={"changed_at": EPOCH + 990}), asked, 10.0) == 10.0
    assert pause_s(quiet, [*asked, job("9")], 10.0) == 10.0
    doubtful = running.model_copy(update={"gone_since": EPOCH + 999, "activity": "unknown"})
    assert pause_s(quiet.model_copy(update={"jobs": {"7_0": doubtful}}), asked, 10.0) == 10.0


def after(state: str) -> JobState:
    return JobState(job_id="7_0", job_name="ego-1", state=state, activity="active", source="squeue", seen_at=EPOCH)


def test_a_view_from_a_wrong_clock_does_not_stop_the_asking(tmp_path: Path) -> None:
    write_document(SweepPaths(tmp_path).queue, QueueView(asked_at=EPOCH + 9999, jobs={"7_0": after("RUNNING")}))
    slurm = Script(listed("COMPLETING"))
    view = ask(SweepPaths(tmp_path), [job("7_0")], 10.0, Clock(), slurm)
    assert slurm.calls == ["squeue"] and view.jobs["7_0"].state == "COMPLETING"


def test_two_at_once_make_one_call(tmp_path: Path) -> None:
    gate, entered = threading.Event(), threading.Event()

    def slow(command: Sequence[str]) -> Answer:
        entered.set()
        gate.wait(10)
        return Answer(listed("RUNNING"))

    first = threading.Thread(target=ask, args=(SweepPaths(tmp_path), [job("7_0")], 10.0, Clock(), slow))
    first.start()
    entered.wait(10)
    slurm = Script(listed("RUNNING"))
    view = ask(SweepPaths(tmp_path), [job("7_0")], 10.0, Clock(), slurm)
    assert slurm.calls == [] and view.jobs["7_0"].activity == "waiting"
    gate.set()
    first.join()
    assert ask(SweepPaths(tmp_path), [job("7_0")], 10.0, Clock(), slurm).jobs["7_0"].activity == "active"
    assert slurm.calls == []


def test_nothing_is_asked_where_all_is_over(tmp_path: Path) -> None:
    over = after("COMPLETED").model_copy(update={"activity": "over"})
    write_document(SweepPaths(tmp_path).queue, QueueView(asked_at=EPOCH, jobs={"7_0": over}))
    slurm = Script()
    ask(SweepPaths(tmp_path), [job("7_0")], 1.0, Clock(EPOCH + 500), slurm)
    assert slurm.calls == []


def test_nothing_is_asked_where_the_answer_cannot_be_kept(tmp_path: Path) -> None:
    # Else a full disk would make every look of every command a call.
    slurm, clock = Script(listed("RUNNING")), Clock(EPOCH + 60)
    watch(tmp_path, slurm, 1, clock=clock)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        view = ask(SweepPaths(tmp_path), [job("7_0")], 1.0, Clock(EPOCH + 90), slurm)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write" in view.problem and view.jobs["7_0"].activity == "active"
    assert slurm.calls == ["squeue"]


def test_other_jobs_of_the_view_stay_until_they_are_over(tmp_path: Path) -> None:
    other = after("RUNNING").model_copy(update={"job_id": "3", "job_name": "x"})
    done = other.model_copy(update={"job_id": "4", "activity": "over"})
    write_document(SweepPaths(tmp_path).queue, QueueView(asked_at=EPOCH, jobs={"3": other, "4": done}))
    ask(SweepPaths(tmp_path), [job("7_0")], 1.0, Clock(EPOCH + 60), Script(listed("RUNNING")))
    kept = read_document(SweepPaths(tmp_path).queue, QueueView)
    assert kept is not None and set(kept.jobs) == {"3", "7_0"}


# ---------------------------------------------------------------- commands


def test_variables_that_would_filter_the_answer_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "squeue"
    program.write_text("#!/bin/sh\nenv\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SQUEUE_STATES", "PD")
    monkeypatch.setenv("SLURM_CONF", "/x")
    text = run_command(["squeue"]).text
    assert "SQUEUE_STATES" not in text and "SLURM_BITSTR_LEN=0" in text and "SLURM_CONF=/x" in text


def test_a_command_that_hangs_fails_or_is_missing_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_command(["sh", "-c", "echo first >&2; echo last >&2; exit 1"]).problem == "last"
    assert run_command(["/no/such"]).problem.endswith("not installed here")
    monkeypatch.setattr("egobench.launch.queue.poll.CALL_LIMIT_S", 0.2)
    assert "no answer within 0.2 s" in run_command(["sleep", "5"]).problem


def test_the_view_reads_what_an_older_version_wrote(tmp_path: Path) -> None:
    old = {
        "asked_at": 1.0,
        "jobs": {"7": {"job_id": "7", "state": "RUNNING", "activity": "active", "source": "squeue"}},
    }
    SweepPaths(tmp_path).queue.write_text(json.dumps(old))
    view = read_document(SweepPaths(tmp_path).queue, QueueView)
    assert view is not None and view.jobs["7"].activity == "active"
