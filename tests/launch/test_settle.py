"""What becomes of the trial that an allocation left behind when Slurm ended it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from egobench.launch.fleet import AllocationState
from egobench.launch.settle import find_end, settle
from egobench.records.allocation import Allocation, AllocationPaths, Claim, Ended, Interruption, Start, TrialRef
from egobench.records.outcome import Outcome
from egobench.records.queue import Activity, JobState
from egobench.records.store import SweepPaths, TrialPaths, read_document, write_document

FIRST, SECOND, THIRD = (TrialRef(cell_id="c", trial=number) for number in range(3))


def job_state(state: str = "NODE_FAIL", activity: Activity = "over", **fields: object) -> JobState:
    told = {"job_id": "7_0", "state": state, "activity": activity, "nodes": "n2", "source": "sacct", **fields}
    return JobState.model_validate(told)


class Left:
    """An allocation of three trials: the first is done, the second was running, the third not begun."""

    def __init__(self, folder: Path, starts: int = 1, claim_of: int | None = None) -> None:
        self.paths = AllocationPaths(SweepPaths(folder).allocations / "1")
        write_document(self.paths.allocation, Allocation(sweep="s", trials=(FIRST, SECOND, THIRD)))
        for number in range(starts):
            start = Start(number=number, job_id="7_0", nodes=("n1", "n2"), pid=9, at=100.0 + number)
            write_document(self.paths.start(number), start)
        self.claim(FIRST, 0)
        write_document(self.trial(FIRST).outcome, self.outcome("ok"))
        if starts:
            self.claim(SECOND, starts - 1 if claim_of is None else claim_of)

    def trial(self, ref: TrialRef) -> TrialPaths:
        return self.paths.trial(ref)

    def outcome(self, name: str) -> dict[str, object]:
        return {"outcome": name, "cell_id": "c", "trial": 0, "started_at": 1.0, "ended_at": 2.0}

    def claim(self, ref: TrialRef, start: int, allocation: int = 1) -> None:
        claim = Claim(allocation=allocation, start=start, attempt=2, host="n1", pid=9, since=110.0)
        write_document(self.trial(ref).running, claim)

    def mark(self, start: int = 0) -> None:
        mark = Interruption(allocation=1, start=start, attempt=2, signal="SIGTERM", at=120.0)
        write_document(self.trial(SECOND).interrupted, mark)

    def settle(self, job: JobState | None, activity: Activity = "over") -> list[TrialRef]:
        return settle(AllocationState(self.paths, activity, job))

    def read(self, ref: TrialRef = SECOND) -> Outcome | None:
        return read_document(self.trial(ref).outcome, Outcome)

    def ended(self) -> Ended | None:
        return read_document(self.paths.ended, Ended)


@pytest.mark.parametrize(
    ("state", "outcome", "interrupted"),
    [
        ("PREEMPTED", "preempted", True),
        ("CANCELLED", "cancelled", False),
        ("TIMEOUT", "timeout", True),
        ("DEADLINE", "timeout", True),
        ("NODE_FAIL", "node_fail", True),
        ("BOOT_FAIL", "node_fail", True),
        ("OUT_OF_MEMORY", "host_oom", False),
        ("FAILED", "crash", False),
        ("COMPLETED", "crash", False),
        ("", "node_fail", True),
    ],
)
def test_each_end(state: str, outcome: str, interrupted: bool, tmp_path: Path) -> None:
    left = Left(tmp_path)
    assert left.settle(job_state(state, reason="some reason")) == [SECOND]
    found, ended = left.read(), left.ended()
    assert found is not None and ended is not None
    assert (found.outcome, found.interrupted, found.attempt) == (outcome, interrupted, 2)
    assert "7_0" in found.because and "n2" in found.because and "some reason" in found.because
    assert ended.state == state and "n2" in ended.because
    assert left.read(THIRD) is None


def test_the_warning_tells_apart_an_ending_machine_from_a_crash() -> None:
    mark = Interruption(allocation=1, start=0, attempt=1, signal="SIGTERM", at=1.0)
    assert find_end(job_state("FAILED", signal=15), mark)[0] == "preempted"
    assert find_end(job_state("CANCELLED"), mark)[0] == "cancelled"
    assert find_end(job_state("TIMEOUT"), mark)[0] == "timeout"


def test_a_worker_that_died_is_a_crash_that_names_its_end() -> None:
    assert "killed by SIGKILL" in find_end(job_state("FAILED", signal=9))[1]
    assert "exit code 7" in find_end(job_state("FAILED", exit_code=7))[1]
    outcome, because = find_end(job_state("FAILED", signal=9, max_rss_bytes=3900 << 20, memory_bytes=4 << 30))
    assert outcome == "crash" and "3.81 GiB of 4.00 GiB" in because and "host memory" in because
    assert "memory" not in find_end(job_state("FAILED", signal=9, max_rss_bytes=1 << 30, memory_bytes=4 << 30))[1]


def test_exit_codes_of_the_end(tmp_path: Path) -> None:
    cases = [
        (job_state("FAILED", exit_code=5), 5),
        (job_state("FAILED", exit_code=0, signal=9), -9),
        (job_state("COMPLETED", exit_code=0), 0),
        (job_state("CANCELLED", exit_code=0), 1),
        (job_state("", exit_code=None), 1),
    ]
    for number, (job, code) in enumerate(cases):
        left = Left(tmp_path / str(number))
        left.settle(job)
        ended = left.ended()
        assert ended is not None and ended.exit_code == code


def test_what_lives_is_local_or_has_ended_is_left_alone(tmp_path: Path) -> None:
    left = Left(tmp_path)
    assert left.settle(None) == []
    assert left.settle(job_state(activity="active"), "active") == []
    assert left.settle(job_state(activity="unknown"), "unknown") == []
    assert left.ended() is None and left.read() is None
    write_document(left.paths.ended, Ended(exit_code=0, at=1.0))
    assert left.settle(job_state()) == [] and left.read() is None


def test_a_job_that_never_started(tmp_path: Path) -> None:
    left = Left(tmp_path, starts=0)
    assert left.settle(job_state("CANCELLED", nodes="", reason="it left the queue while it waited")) == []
    ended = left.ended()
    assert ended is not None and ended.state == "CANCELLED" and "while it waited" in ended.because


def test_a_claim_of_another_allocation_is_not_ours(tmp_path: Path) -> None:
    left = Left(tmp_path)
    left.claim(SECOND, 0, allocation=4)
    assert left.settle(job_state()) == [] and left.read() is None and left.ended() is not None


def test_an_earlier_start_that_nobody_settled(tmp_path: Path) -> None:
    left = Left(tmp_path, starts=2, claim_of=0)
    left.mark(start=0)
    assert left.settle(job_state("OUT_OF_MEMORY")) == [SECOND]  # start 1 had no trial yet
    found = left.read()
    assert found is not None and (found.outcome, found.interrupted) == ("preempted", True)


def test_a_mark_of_an_earlier_attempt_says_nothing(tmp_path: Path) -> None:
    left = Left(tmp_path, starts=2)
    left.mark(start=0)
    left.settle(job_state("FAILED", signal=9))
    found = left.read()
    assert found is not None and found.outcome == "crash"


def test_nodes_come_from_the_start_where_slurm_has_forgotten_them(tmp_path: Path) -> None:
    left = Left(tmp_path)
    left.settle(job_state("", nodes=""))
    found = left.read()
    assert found is not None and "n1,n2" in found.because


def test_many_at_once_and_again(tmp_path: Path) -> None:
    left = Left(tmp_path)
    with multiprocessing.get_context("fork").Pool(8) as pool:
        results = pool.map(left.settle, [job_state()] * 8)
    assert sum(map(len, results)) == 1
    first = left.paths.ended.read_text()
    assert left.settle(job_state("CANCELLED")) == [] and left.paths.ended.read_text() == first
    assert not list(tmp_path.rglob(".*"))


def test_an_outcome_that_the_worker_wrote_at_the_last_moment_stands(tmp_path: Path) -> None:
    left = Left(tmp_path)
    write_document(left.trial(SECOND).outcome, left.outcome("ok"))
    assert left.settle(job_state()) == []
    found = left.read()
    assert found is not None and found.outcome == "ok" and left.ended() is not None


def test_the_workers_word_that_its_machine_failed_is_not_held_against_the_trial(tmp_path: Path) -> None:
    left = Left(tmp_path)
    left.settle(job_state("FAILED", exit_code=5))
    found = left.read()
    assert found is not None and (found.outcome, found.interrupted) == ("node_fail", True)


def test_trials_that_were_handed_back_are_no_crash(tmp_path: Path) -> None:
    left = Left(tmp_path, starts=0)
    assert left.settle(job_state("FAILED", exit_code=75)) == []
    ended = left.ended()
    assert ended is not None and (ended.exit_code, ended.state) == (75, "FAILED")
    assert "handed its trials back" in ended.because
    assert find_end(job_state("FAILED", exit_code=75))[0] == "node_fail"  # of a claim that it left all the same


def test_a_start_of_another_job_is_not_concluded(tmp_path: Path) -> None:
    left = Left(tmp_path)
    assert left.settle(job_state(job_id="8_0")) == [] and left.read() is None
    ended = left.ended()
    assert ended is not None and "start 0 is of job 7_0" in ended.because


@pytest.mark.parametrize(("is_marked", "outcome"), [(True, "preempted"), (False, "node_fail")])
def test_a_last_run_that_never_began_says_nothing_about_the_trial(
    tmp_path: Path, is_marked: bool, outcome: str
) -> None:
    left = Left(tmp_path)
    if is_marked:
        left.mark()
    left.settle(job_state("FAILED", signal=53, restarts=1))
    found = left.read()
    assert found is not None and (found.outcome, found.interrupted) == (outcome, True)
