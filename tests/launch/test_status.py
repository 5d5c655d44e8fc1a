"""`status` over sweeps that nobody ran: what it says follows from the files alone, at any size."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from egobench.launch.watch.command import show_command, status_command
from egobench.launch.watch.reader import SweepReader, read_sweep
from egobench.launch.watch.state import SweepState, TrialState
from egobench.records.allocation import Ended, Interruption, Job
from egobench.records.lock import take_lock
from egobench.records.queue import JobState, QueueView
from egobench.records.store import SweepPaths
from egobench.records.usage import Span
from egobench.report.collect import collect
from tests.launch import made_up
from tests.launch.made_up import NOW, job_state, write_allocation, write_claim, write_outcome, write_queue

CELLS = [made_up.make_cell(number).cell_id for number in range(4)]


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return made_up.write_sweep(tmp_path / "runs" / "made")


def look(paths: SweepPaths, at: float = NOW) -> SweepState:
    state = read_sweep(paths.folder)
    return SweepState(**{name: getattr(state, name) for name in state.__dataclass_fields__} | {"at": at})


def trial_of(state: SweepState, cell: int, trial: int = 0) -> TrialState:
    return state.of_cell(CELLS[cell])[trial]


def text_of(paths: SweepPaths, capsys: pytest.CaptureFixture[str], **options: bool) -> str:
    assert status_command(str(paths.folder), runs=paths.folder.parent, **options) == 0
    return capsys.readouterr().out


def test_trials_in_several_allocations(paths: SweepPaths) -> None:
    """Two run in two allocations at once, one waits in a third, and a trial of none is pending too."""
    write_allocation(paths, 1, [(CELLS[0], 0), (CELLS[1], 0)], began_at=[NOW - 100])
    write_allocation(paths, 2, [(CELLS[2], 0)], began_at=[NOW - 100])
    write_allocation(paths, 3, [(CELLS[3], 0)])
    write_claim(paths, CELLS[0], 0, 1)
    write_claim(paths, CELLS[2], 0, 2)
    write_queue(paths, job_state(1, "RUNNING"), job_state(2, "RUNNING"), job_state(3, "PENDING"))
    state = look(paths)
    assert state.ledger["running"] == 2
    assert state.ledger["pending"] == 10
    assert sum(count for name, count in state.ledger.items() if name != "planned") == state.ledger["planned"] == 12
    assert [found.activity for found in state.allocations] == ["active", "active", "waiting"]
    assert [trial_of(state, cell).allocation for cell in range(4)] == [1, 1, 2, 3]
    assert trial_of(state, 3, 1).allocation is None


def test_what_its_allocation_left_behind_does_not_run(paths: SweepPaths) -> None:
    """Slurm says that the jobs are over; nobody has settled their trials yet."""
    ends = ("NODE_FAIL", "OUT_OF_MEMORY", "CANCELLED", "COMPLETED")
    for number in range(1, 5):
        write_allocation(paths, number, [(CELLS[number - 1], 0)], began_at=[NOW - 100])
        write_claim(paths, CELLS[number - 1], 0, number)
    write_queue(paths, *(job_state(number, state) for number, state in enumerate(ends, 1)))
    state = look(paths)
    assert not state.allocations
    assert [trial_of(state, cell).outcome for cell in range(4)] == ["pending", "host_oom", "cancelled", "crash"]
    assert trial_of(state, 0).because.startswith("attempt 1: node_fail (job 77_1")
    assert trial_of(state, 0).because.endswith("it is to run again")


def test_the_last_attempt_of_an_interrupted_trial_is_final(paths: SweepPaths) -> None:
    for cell, attempt in enumerate((2, 3)):
        write_outcome(paths, CELLS[cell], 0, "preempted", attempt=attempt, interrupted=True)
    state = look(paths)
    assert trial_of(state, 0).outcome == "pending"
    assert trial_of(state, 1).outcome == "preempted"
    assert state.num_repeats == 3


def test_a_trial_that_is_asked_for_again_is_pending_while_its_allocation_lives(paths: SweepPaths) -> None:
    write_outcome(paths, CELLS[0], 0, "crash")
    files = write_allocation(paths, 1, [(CELLS[0], 0)])
    document = json.loads(files.allocation.read_text())
    document["trials"][0]["attempt"] = 2
    files.allocation.write_text(json.dumps(document))
    write_queue(paths, job_state(1, "PENDING"))
    assert trial_of(look(paths), 0).outcome == "pending"
    write_queue(paths, job_state(1, "CANCELLED"))
    assert trial_of(look(paths), 0).outcome == "crash"


def test_a_newer_start_supersedes_the_claim_of_an_older_one(paths: SweepPaths) -> None:
    write_allocation(paths, 1, [(CELLS[0], 0)], began_at=[NOW - 900, NOW - 100])
    write_claim(paths, CELLS[0], 0, 1, start=0)
    write_queue(paths, job_state(1, "RUNNING", restarts=1))
    assert trial_of(look(paths), 0).outcome == "pending"
    write_claim(paths, CELLS[0], 0, 1, start=1, attempt=2)
    found = trial_of(look(paths), 0)
    assert (found.outcome, found.attempt) == ("running", 2)


def test_a_start_tells_sooner_than_slurm(paths: SweepPaths) -> None:
    """Slurm's last answer is older than the start; but a job that it started and put back does wait."""
    write_allocation(paths, 1, [(CELLS[0], 0)], began_at=[NOW])
    write_queue(paths, job_state(1, "PENDING"))
    assert [found.activity for found in look(paths).allocations] == ["active"]
    write_queue(paths, job_state(1, "PENDING", restarts=1))
    assert [found.activity for found in look(paths).allocations] == ["waiting"]


def test_an_interruption_mark_decides_what_a_silent_end_was(paths: SweepPaths) -> None:
    write_allocation(paths, 1, [(CELLS[0], 0)], began_at=[NOW - 100])
    write_claim(paths, CELLS[0], 0, 1)
    mark = Interruption(allocation=1, start=0, attempt=1, signal="SIGTERM", at=NOW - 5)
    made_up.write(paths.trial(CELLS[0], 0).interrupted, mark)
    write_queue(paths, job_state(1, "FAILED", exit_code=143))
    found = trial_of(look(paths), 0)
    assert found.outcome == "pending"
    assert "preempted" in found.because


def test_time_left_goes_by_allocations_in_use(paths: SweepPaths) -> None:
    """A trial takes 60 s; eleven are left, eight of them in one allocation."""
    write_outcome(paths, CELLS[0], 0)
    trials = [(cell, trial) for cell in CELLS for trial in range(3)][1:]
    write_allocation(paths, 1, trials[:8], began_at=[NOW - 10])
    write_allocation(paths, 2, trials[8:], began_at=[NOW - 10])
    write_queue(paths, job_state(1, "RUNNING"), job_state(2, "RUNNING"))
    assert look(paths).eta_s == pytest.approx(8 * 60)
    write_queue(paths, job_state(1, "RUNNING"), job_state(2, "PENDING", restarts=1))
    assert look(paths).eta_s == pytest.approx(11 * 60)
    write_queue(paths, *(job_state(number, "PENDING", restarts=1) for number in (1, 2)))
    assert look(paths).num_lanes == 2
    write_claim(paths, *trials[0], 1)  # 30 s ago
    write_queue(paths, job_state(1, "RUNNING"), job_state(2, "RUNNING"))
    assert look(paths).eta_s == pytest.approx(8 * 60 - 30)


def test_waiting_allocations_run_as_many_at_a_time_as_the_site_allows(paths: SweepPaths) -> None:
    write_outcome(paths, CELLS[0], 0)
    for number, trial in enumerate(range(3), 1):
        write_allocation(paths, number, [(CELLS[1], trial)], gpus=4)
    write_queue(paths, *(job_state(number, "PENDING") for number in (1, 2, 3)))
    assert look(paths).num_lanes == 2  # max_gpus: 8


SPAN = Span(start=0, began_at=NOW - 4000, measured_s=1800, warmup_s=600, startup_s=600, lost_s=300, idle_s=300)


def test_hours(paths: SweepPaths) -> None:
    """One allocation went well; one was requeued and then killed; one runs; one is known from accounting."""
    over = Ended(exit_code=0, at=NOW)
    write_allocation(paths, 1, [], began_at=[NOW - 3600], spans=[SPAN], ended=over)
    again = [SPAN.model_copy(update={"lost_s": 0.0})]
    killed = Ended(exit_code=1, state="NODE_FAIL", at=NOW + 90000, elapsed_s=7200)
    write_allocation(paths, 2, [], began_at=[NOW - 9000, NOW - 4000], spans=again, ended=killed)
    write_allocation(paths, 3, [], began_at=[NOW - 1800], spans=[Span(start=0, began_at=NOW - 1800, measured_s=900)])
    write_queue(paths, job_state(3, "RUNNING"))
    hours = look(paths).hours
    assert hours.used == pytest.approx(2 * (1.0 + 2.0 + 0.5))
    assert hours.measured == pytest.approx(2 * (0.5 + 0.5 + 0.25))
    # Lost and idle of the first; idle of the second and all that it did not book; the third is still at work.
    assert hours.wasted == pytest.approx(2 * (600 + 300 + 3900) / 3600)
    assert hours.useful_share == pytest.approx(2.5 / 7.0)


def test_hours_of_a_killed_allocation_without_accounting(paths: SweepPaths) -> None:
    """The end was found out a day later, but its time limit had ended it before."""
    ended = Ended(exit_code=1, state="NODE_FAIL", at=NOW + 86400)
    files = write_allocation(paths, 1, [], began_at=[NOW - 3600], ended=ended)
    start = json.loads(files.start(0).read_text()) | {"ends_at": NOW}
    files.start(0).write_text(json.dumps(start))
    assert look(paths).hours.used == pytest.approx(2.0)
    assert look(paths).hours.wasted == pytest.approx(2.0)


def test_planned_hours(paths: SweepPaths) -> None:
    assert look(paths).planned_gpu_hours == pytest.approx(12 * 2 * 60 / 3600)  # expected_trial_min: 1, two GPUs
    write_outcome(paths, CELLS[0], 0, took_s=600.0)
    assert look(paths).planned_gpu_hours == pytest.approx(12 * 2 * 600 / 3600)


def test_queue_in_words(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1, 5):
        write_allocation(paths, number, [(CELLS[0], 0)])
    write_queue(
        paths,
        job_state(1, "RUNNING"),
        job_state(2, "PENDING", reason="Priority"),
        job_state(3, "PENDING", reason="BadConstraints"),
        job_state(4, "PENDING", reason="BadConstraints"),
        asked_at=time.time(),
    )
    text = text_of(paths, capsys)
    assert "jobs: 1 run, 3 wait\n" in text
    assert "  2 can never start: BadConstraints: no node has what it asks for" in text
    assert "    77_3, 77_4; `egobench cancel" in text
    assert "  1 wait: Priority: others come first\n" in text
    jobs = json.loads(text_of(paths, capsys, as_json=True))["allocations"]
    assert [job["can_never_start"] for job in jobs] == [False, False, True, True]


def test_slurm_that_does_not_answer(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    """What it said last stands, with its age."""
    write_allocation(paths, 1, [(CELLS[0], 0)], began_at=[NOW])
    write_claim(paths, CELLS[0], 0, 1)
    write_queue(paths, job_state(1, "RUNNING"), problem="squeue: Unable to contact", asked_at=time.time() - 0.5)
    view = json.loads(paths.queue.read_text()) | {"squeue_at": time.time() - 200, "num_failures": 3}
    paths.queue.write_text(json.dumps(view))
    text = text_of(paths, capsys)
    assert "Slurm does not answer (squeue: Unable to contact); this is what it said 3 min" in text
    assert "1 running" in text
    assert "jobs: 1 run\n" in text


def test_a_job_id_that_was_given_out_again_is_not_ours(paths: SweepPaths) -> None:
    write_allocation(paths, 1, [(CELLS[0], 0)])
    write_queue(paths, job_state(1, "RUNNING", job_name="somebody-else"))
    assert not look(paths).allocations


def test_a_folder_that_cannot_be_written(paths: SweepPaths) -> None:
    """As for somebody else who looks; what runs here is seen to run, and Slurm's last word stands."""
    write_allocation(paths, 1, [(CELLS[0], 0)], began_at=[NOW])
    write_allocation(paths, 2, [(CELLS[1], 0)], job=False)
    write_claim(paths, CELLS[0], 0, 1)
    write_claim(paths, CELLS[1], 0, 2)
    write_queue(paths, job_state(1, "RUNNING"))
    folder, program = str(paths.folder), f"{sys.executable} -m egobench status --json"
    read_only = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", read_only], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow namespaces (unshare)")
    lock = take_lock(paths.allocations / "2" / "lock")
    assert lock is not None
    look_only = ["unshare", "-rm", "sh", "-c", f"{read_only} && {program} {folder}"]
    done = subprocess.run(look_only, capture_output=True, text=True, check=False)
    lock.close()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ledger"]["running"] == 2
    assert "cannot write" in found["queue"]["problem"]


def test_the_report_agrees_about_what_runs(paths: SweepPaths) -> None:
    for number in (1, 2):
        write_allocation(paths, number, [(CELLS[number], 0)], began_at=[NOW])
        write_claim(paths, CELLS[number], 0, number)
    write_queue(paths, job_state(1, "RUNNING"), job_state(2, "NODE_FAIL"))
    cells = collect(paths.folder).cells
    assert [cell.trials[0].outcome for cell in cells[1:3]] == ["running", "pending"]


def test_long_tables_are_folded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = made_up.write_sweep(tmp_path / "runs" / "long", num_cells=200, trials=1)
    cells = [made_up.make_cell(number).cell_id for number in range(200)]
    for number, cell in enumerate(cells[:150]):
        write_outcome(paths, cell, 0, "crash" if number == 7 else "ok")
    text = text_of(paths, capsys)
    assert [cell for cell in cells if f"{cell} " in text] == [cells[7]]
    assert "and 199 cells: 149 ok, 50 pending (`--all` lists them)" in text
    assert all(f"{cell} " in text_of(paths, capsys, everything=True) for cell in cells[::40])
    assert len(json.loads(text_of(paths, capsys, as_json=True))["trials"]) == 200


def test_show_tells_the_attempts(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    write_outcome(paths, CELLS[0], 0, "node_fail", attempt=1, archived=True, took_s=90, interrupted=True)
    (paths.trial(CELLS[0], 0).attempts / "2").mkdir()
    write_outcome(paths, CELLS[0], 0, attempt=3)
    assert show_command(CELLS[0], sweep=str(paths.folder)) == 0
    text = capsys.readouterr().out
    assert "trial 0: ok\n" in text
    assert "  attempt 1: node_fail after 1 min 30 s: for a test\n" in text
    assert "  attempt 2: nobody wrote how it ended" in text
    show_command(CELLS[0], sweep=str(paths.folder), as_json=True)
    attempts = json.loads(capsys.readouterr().out)["trials"][0]["earlier_attempts"]
    assert [found["outcome"] for found in attempts] == ["node_fail", None]


class Counted:
    """Answers for Slurm, and counts."""

    def __init__(self, *jobs: JobState) -> None:
        self.view = QueueView(asked_at=NOW, squeue_at=NOW, jobs={job.job_id: job for job in jobs})
        self.asked: list[list[str]] = []

    def __call__(self, paths: SweepPaths, jobs: object, every_s: float) -> QueueView:
        assert isinstance(jobs, list)
        self.asked.append([job.job_id for job in jobs if isinstance(job, Job)])
        return self.view


def test_looking_again_reads_what_can_have_changed(paths: SweepPaths) -> None:
    write_outcome(paths, CELLS[0], 0)
    write_allocation(paths, 1, [(CELLS[0], 0), (CELLS[1], 0)], began_at=[NOW], ended=Ended(exit_code=0, at=NOW))
    write_allocation(paths, 2, [(CELLS[1], 0), (CELLS[2], 0), (CELLS[3], 0)], began_at=[NOW])
    slurm = Counted(job_state(2, "RUNNING"))
    reader = SweepReader(paths.folder, slurm)
    assert reader.read().ledger["ok"] == 1
    write_claim(paths, CELLS[1], 0, 2)
    assert trial_of(reader.read(), 1).outcome == "running"
    write_outcome(paths, CELLS[1], 0)
    write_claim(paths, CELLS[2], 0, 2)
    state = reader.read()
    assert [trial_of(state, cell).outcome for cell in range(4)] == ["ok", "ok", "running", "pending"]
    assert slurm.asked == [["77_2"]] * 3
    slurm.view = QueueView(asked_at=NOW, squeue_at=NOW, jobs={"77_2": job_state(2, "NODE_FAIL")})
    assert trial_of(reader.read(), 2).outcome == "pending"
    # A new allocation takes a trial up that had been settled for good.
    write_outcome(paths, CELLS[1], 1, "crash")
    files = write_allocation(paths, 3, [(CELLS[1], 0)])
    document = json.loads(files.allocation.read_text())
    document["trials"][0]["attempt"] = 2
    files.allocation.write_text(json.dumps(document))
    slurm.view = QueueView(asked_at=NOW, squeue_at=NOW, jobs={"77_3": job_state(3, "PENDING")})
    state = reader.read()
    assert (trial_of(state, 1).outcome, trial_of(state, 1).allocation) == ("pending", 3)
    made_up.write_sweep(paths.folder, num_cells=5)
    assert reader.read().ledger["planned"] == 15


def test_nothing_is_missed_of_an_allocation_that_ended_between_two_looks(paths: SweepPaths) -> None:
    trials = [(cell, trial) for cell in CELLS for trial in range(3)]
    write_allocation(paths, 1, trials, began_at=[NOW])
    slurm = Counted(job_state(1, "RUNNING"))
    reader = SweepReader(paths.folder, slurm)
    assert reader.read().ledger["pending"] == 12
    for cell, trial in trials:
        write_outcome(paths, cell, trial)
    slurm.view = QueueView(asked_at=NOW, squeue_at=NOW, jobs={"77_1": job_state(1, "COMPLETED")})
    assert reader.read().ledger["ok"] == 12
