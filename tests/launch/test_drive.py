"""The driver against a scripted cluster: files and states are real, only nobody trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from egobench.errors import EXIT_OK, EXIT_TRIALS_FAILED, EnvironmentProblem
from egobench.launch import drive, reap
from egobench.launch.drive import Driver
from egobench.launch.follow import Follower
from egobench.launch.packing import Packing, QueueFull
from egobench.launch.queue import poll
from egobench.launch.queue.poll import Answer
from egobench.launch.reap import Reaper
from egobench.launch.sweep import Todo, Wish
from egobench.launch.watch.files import read_allocation
from egobench.launch.watch.progress import PlainProgress
from egobench.launch.watch.reader import SweepReader
from egobench.records.allocation import AllocationPaths, CancelRequest, Ended, Job, Retry, TrialRef
from egobench.records.queue import QueueView
from egobench.records.store import SweepPaths, read_document, write_document
from egobench.records.sweep import Sweep
from tests.launch import made_up
from tests.launch.made_up import job_state, write_allocation, write_claim, write_outcome

CELLS = [made_up.make_cell(number).cell_id for number in range(4)]
Run = Callable[["Scripted", int, tuple[TrialRef, ...]], str]
"""What a job does when it runs: writes files, and returns the state in which Slurm ends it."""


class Scripted:
    """A cluster whose jobs run, each to its end, when somebody asks for them."""

    def __init__(self, paths: SweepPaths, run: Run) -> None:
        self.paths, self.run = paths, run
        self.given: dict[int, tuple[TrialRef, ...]] = {}
        self.room = 1000
        self.orphans: set[int] = set()
        self.states: dict[int, str] = {}

    def recover(self) -> set[int]:
        return set(self.orphans)

    def start(self, packing: Packing, first: int) -> list[AllocationPaths]:
        started = []
        for draft in (draft for array in packing.arrays for draft in array.drafts):
            if sum(state == "PENDING" for state in self.states.values()) >= self.room:
                raise QueueFull("sbatch: too many jobs")
            number = first + len(started)
            keys = [(ref.cell_id, ref.trial) for ref in draft.trials]
            started.append(write_allocation(self.paths, number, keys))
            self.given[number] = draft.trials
            self.states[number] = "PENDING"
        return started

    def ask(self, _paths: SweepPaths, jobs: Sequence[Job], _every_s: float) -> QueueView:
        # One job a look, so that there is a moment between their ends.
        waiting = sorted(number for number, state in self.states.items() if state == "PENDING")
        for number in waiting[:1]:
            self.states[number] = self.run(self, number, self.given[number])
        found = [job_state(number, state) for number, state in self.states.items()]
        return QueueView(asked_at=0.0, jobs={state.job_id: state for state in found})


def all_ok(cluster: Scripted, number: int, refs: tuple[TrialRef, ...]) -> str:
    for ref in refs:
        write_outcome(cluster.paths, ref.cell_id, ref.trial, took_s=1.0)
    return "COMPLETED"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Not a number of looks: some waits end by the clock, and a quick machine looks often.
    end = time.monotonic() + 60

    def sleep(_seconds: float) -> None:
        assert time.monotonic() < end, "the driver never comes to an end"

    monkeypatch.setattr(drive.time, "sleep", sleep)
    yield


def make(tmp_path: Path, run: Run = all_ok, *, trials: int = 1, wish: Wish = Wish(), **site: object) -> Driver:  # noqa: B008
    changed = made_up.SITE.model_copy(update={"max_trials_per_job": 1} | site)
    paths = made_up.write_sweep(tmp_path / "runs" / "made", trials=trials, site=changed)
    sweep = read_document(paths.sweep, Sweep)
    assert sweep is not None
    refs = tuple(TrialRef(cell_id=cell, trial=trial) for trial in range(trials) for cell in CELLS)
    cluster = Scripted(paths, run)
    todo = Todo(sweep, paths, refs, Retry(max_attempts=wish.max_attempts))
    observer = PlainProgress()
    follower = Follower(SweepReader(paths.folder, cluster.ask), refs, todo.retry, observer)
    return Driver(todo, wish, cluster, follower, observer)


def cluster_of(driver: Driver) -> Scripted:
    assert isinstance(driver.fleet, Scripted)
    return driver.fleet


def outcomes(driver: Driver) -> list[str]:
    found = (driver.follower.known(ref) for ref in driver.todo.asked)
    return [document.outcome if document is not None else "-" for document in found]


def test_everything_runs_once(tmp_path: Path) -> None:
    driver = make(tmp_path, trials=2)
    assert driver.run() == EXIT_OK
    assert outcomes(driver) == ["ok"] * 8
    given = [ref for refs in cluster_of(driver).given.values() for ref in refs]
    assert len(given) == len(set(given)) == 8


def test_what_the_queue_has_no_room_for_follows_when_there_is_some(tmp_path: Path) -> None:
    driver = make(tmp_path)
    cluster_of(driver).room = 3
    assert driver.run() == EXIT_OK
    assert outcomes(driver) == ["ok"] * 4
    assert len(cluster_of(driver).given) == 4


def test_a_lost_node_is_launched_again_up_to_the_limit(tmp_path: Path) -> None:
    def lost(cluster: Scripted, number: int, refs: tuple[TrialRef, ...]) -> str:
        (ref,) = refs
        trial = cluster.paths.trial(ref.cell_id, ref.trial)
        attempt = 1
        if trial.outcome.exists():
            attempt = int(trial.outcome.read_text().partition('"attempt": ')[2].partition(",")[0]) + 1
            trial.outcome.unlink()
        if ref.cell_id == CELLS[0]:
            write_claim(cluster.paths, ref.cell_id, ref.trial, number, attempt=attempt)
            write_document(
                AllocationPaths(cluster.paths.allocations / str(number)).start(0),
                made_up.Start(number=0, job_id=made_up.job_id(number), nodes=("n1",), pid=1, at=1.0),
            )
            return "NODE_FAIL"
        return all_ok(cluster, number, refs)

    driver = make(tmp_path, lost, wish=Wish(max_attempts=2))
    assert driver.run() == EXIT_TRIALS_FAILED
    assert outcomes(driver) == ["node_fail", "ok", "ok", "ok"]
    document = driver.follower.known(driver.todo.asked[0])
    assert document is not None and (document.attempt, document.interrupted) == (2, True)
    assert len(cluster_of(driver).given) == 5


def test_jobs_that_launch_nothing_are_given_up_and_told(tmp_path: Path) -> None:
    driver = make(tmp_path, lambda *_: "FAILED")
    with pytest.raises(EnvironmentProblem, match="2 allocations in a row launched no trial"):
        driver.run()
    assert len(cluster_of(driver).given) == 8

    # Preemption and dead nodes are no reason to give up so soon.
    patient = make(tmp_path / "again", lambda *_: "PREEMPTED")
    with pytest.raises(EnvironmentProblem, match="10 allocations in a row"):
        patient.run()


def test_scancel_is_no_reason_to_submit_again(tmp_path: Path) -> None:
    driver = make(
        tmp_path, lambda cluster, n, refs: "CANCELLED" if refs[0].cell_id == CELLS[1] else all_ok(cluster, n, refs)
    )
    assert driver.run() == EXIT_TRIALS_FAILED
    assert outcomes(driver) == ["ok", "-", "ok", "ok"]
    assert len(cluster_of(driver).given) == 4


def test_a_cancelled_cell_is_not_submitted_again(tmp_path: Path) -> None:
    def leaves_one_out(cluster: Scripted, number: int, refs: tuple[TrialRef, ...]) -> str:
        allocation = AllocationPaths(cluster.paths.allocations / str(number))
        write_document(allocation.cancel, CancelRequest(cell_id=CELLS[2], by="me", at=1.0))
        return all_ok(cluster, number, tuple(ref for ref in refs if ref.cell_id != CELLS[2]))

    driver = make(tmp_path, leaves_one_out, max_trials_per_job=None)
    assert driver.run() == EXIT_TRIALS_FAILED
    assert outcomes(driver) == ["ok", "ok", "-", "ok"]
    assert len(cluster_of(driver).given) == 1


def test_fail_fast_is_about_failures_of_this_call(tmp_path: Path) -> None:
    driver = make(tmp_path, wish=Wish(fail_fast=True))
    write_outcome(driver.todo.paths, CELLS[3], 0, "crash")
    assert driver.run() == EXIT_TRIALS_FAILED
    assert outcomes(driver) == ["ok", "ok", "ok", "crash"]


def test_trials_of_a_submission_in_doubt_are_left_alone_until_it_is_known(tmp_path: Path) -> None:
    driver = make(tmp_path)
    cluster = cluster_of(driver)
    lost = write_allocation(cluster.paths, 1, [(CELLS[0], 0)], job=False)
    cluster.orphans, looks = {1}, iter(range(6))
    write_outcome(cluster.paths, CELLS[1], 0)

    def recover() -> set[int]:
        if next(looks, None) is None and cluster.orphans:
            # Slurm answers: it has the job.
            cluster.orphans = set()
            made_up.write(lost.job, made_up.make_job(1))
            cluster.given[1] = (TrialRef(cell_id=CELLS[0], trial=0),)
            cluster.states[1] = "PENDING"
        return set(cluster.orphans)

    cluster.recover = recover  # type: ignore[method-assign]
    assert driver.run() == EXIT_OK
    given = [ref.cell_id for refs in cluster.given.values() for ref in refs]
    assert sorted(given) == sorted([CELLS[0], CELLS[2], CELLS[3]])


def test_a_job_that_outlives_its_worker_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make(tmp_path).todo.paths
    done = [write_allocation(paths, number, [(CELLS[0], 0)]) for number in (1, 2, 3, 4)]
    for allocation, ago in zip(done, (100, 100, 0, 100), strict=True):
        write_document(allocation.ended, Ended(exit_code=0, at=time.time() - ago))
    # The second is over; the third ended just now; the id of the fourth belongs to another job by now.
    names = {"77_1": "egobench-1", "77_3": "egobench-3", "77_4": "somebody-else"}
    rows = "".join(f"{job_id}|{name}|RUNNING|0|0:0|0:0|1:00|n1|None|\n" for job_id, name in names.items())
    cancelled: list[str] = []
    monkeypatch.setattr(poll, "run_command", lambda _command: Answer(rows))
    monkeypatch.setattr(reap, "scancel", lambda ids: cancelled.extend(ids) or "")
    files = [found for found in map(read_allocation, done) if found is not None]
    reaper = Reaper()
    assert reaper.look(files) == []  # not at once
    monkeypatch.setattr(reaper, "_next_s", 0.0)
    assert reaper.look(files) == cancelled == ["77_1"]
    monkeypatch.setattr(reaper, "_next_s", 0.0)
    assert reaper.look(files) == []  # once
