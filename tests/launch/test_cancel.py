"""`cancel` on the real cluster: what runs ends cleanly, what waits leaves the queue, what was not asked for goes on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from egobench.launch import cancel
from egobench.launch.command import sweep_command
from egobench.launch.queue.poll import Answer
from egobench.launch.watch.command import cancel_command, status_command
from egobench.launch.watch.reader import SweepReader, read_sweep
from egobench.launch.watch.state import SweepState
from egobench.records.allocation import AllocationPaths, CancelRequest, Ended
from egobench.records.store import SweepPaths, read_document
from tests.cluster.lab import Cluster
from tests.cluster.sites import SlurmSites
from tests.launch import made_up
from tests.launch.made_up import NOW, job_state, write_allocation, write_queue
from tests.launch.sweeps import wait_for


def submit(sites: SlurmSites, trials: int, per_job: int, max_gpus: int = 4) -> Path:
    """Submit long trials of two cells on two GPUs each."""
    sites.write(max_trials_per_job=per_job, max_gpus=max_gpus)
    matrix = sites.matrix(trials=trials, steps=5000)
    assert sweep_command(matrix, runs=sites.runs, detach=True) == 0
    return sites.runs / "small"


def running(folder: Path, count: int) -> SweepState:
    """Wait until so many trials are in their steps."""

    def found() -> SweepState | None:
        state = read_sweep(folder)
        return state if len([trial for trial in state.running if trial.step >= 1]) == count else None

    state: SweepState = wait_for(found, 120)
    return state


def queued() -> list[str]:
    done = subprocess.run(["squeue", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.slurm
def test_a_sweep(cluster: Cluster, slurm_sites: SlurmSites, capsys: pytest.CaptureFixture[str]) -> None:
    folder = submit(slurm_sites, trials=3, per_job=1)
    running(folder, 2)
    status_command(str(folder))
    assert "4 wait" in capsys.readouterr().out
    assert cancel_command(str(folder)) == 0
    out = capsys.readouterr().out
    assert "4 jobs left the queue" in out
    assert "2 allocations ended" in out
    assert "6 planned: 2 cancelled, 4 pending" in out
    wait_for(lambda: not queued(), 30)
    state = read_sweep(folder)
    assert not state.allocations
    ends = [files.ended for files in state.files.values()]
    assert sorted(end.state for end in ends if end is not None) == ["", "", *["CANCELLED"] * 4]


@pytest.mark.slurm
def test_one_cell_after_another(cluster: Cluster, slurm_sites: SlurmSites, capsys: pytest.CaptureFixture[str]) -> None:
    folder = submit(slurm_sites, trials=2, per_job=4, max_gpus=2)
    first = running(folder, 1).running[0].cell.cell_id
    assert cancel_command(str(folder), cell=first) == 0
    assert f"no trial of {first} runs now, and allocation" in capsys.readouterr().out
    state = running(folder, 1)
    second = state.running[0].cell.cell_id
    assert second != first
    assert cancel_command(str(folder), cell=second) == 0
    wait_for(lambda: not SweepReader(folder).read().allocations and not queued(), 60)
    assert read_sweep(folder).ledger["cancelled"] == 2  # those that ran
    assert read_sweep(folder).ledger["pending"] == 2


@pytest.mark.slurm
def test_a_job_that_does_not_listen(
    cluster: Cluster,
    slurm_sites: SlurmSites,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slurm ends it, and its trial is settled at once."""
    folder = submit(slurm_sites, trials=1, per_job=2)
    running(folder, 1)
    monkeypatch.setattr(cancel, "SLURM_PATIENCE_S", 0)
    monkeypatch.setattr(cancel, "SQUEUE_EVERY_S", 0.5)
    monkeypatch.setattr(cancel, "_request", lambda *_: None)
    assert cancel_command(str(folder)) == 0
    out = capsys.readouterr().out
    assert "1 jobs did not answer and were ended by Slurm; 2 planned: 1 cancelled, 1 pending" in out
    wait_for(lambda: not queued(), 30)


class Login:
    """Slurm's commands as a login node has them; remembers what was asked for."""

    def __init__(self, problem: str = "") -> None:
        self.calls: list[list[str]] = []
        self.problem = problem

    def __call__(self, command: list[str]) -> Answer:
        self.calls.append(command)
        return Answer(problem=self.problem)


CELLS = [made_up.make_cell(number).cell_id for number in range(4)]


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return made_up.write_sweep(tmp_path / "runs" / "made")


def test_a_cell_empties_an_allocation_that_waits(paths: SweepPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a waiting job with nothing else to do leaves the queue; cells that were cancelled before stay so."""
    login = Login()
    monkeypatch.setattr(cancel, "run_command", login)
    monkeypatch.setattr(cancel, "ask", None)
    monkeypatch.setattr(cancel, "SLURM_PATIENCE_S", 0.3)
    only = write_allocation(paths, 1, [(CELLS[0], 0), (CELLS[1], 0)])
    mixed = write_allocation(paths, 2, [(CELLS[0], 1), (CELLS[2], 1)])
    other = write_allocation(paths, 3, [(CELLS[3], 1)])
    write_queue(paths, *(job_state(number, "PENDING") for number in (1, 2, 3)))
    cancel.cancel_sweep(paths, CELLS[0])
    assert [command[0] for command in login.calls] == []
    assert not other.cancel.exists()
    cancel.cancel_sweep(paths, CELLS[1])
    assert login.calls[0] == ["scancel", "77_1"]
    request = read_document(only.cancel, CancelRequest)
    assert request is not None
    assert all(request.leaves_out(cell) for cell in CELLS[:2])
    assert not request.leaves_out(CELLS[2])
    ended = read_document(only.ended, Ended)
    assert ended is not None
    assert ended.state == "CANCELLED"
    assert not mixed.ended.exists()


def test_without_slurms_commands_the_requests_stay(paths: SweepPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancel, "run_command", Login("scancel: not installed here"))
    monkeypatch.setattr(cancel, "ask", None)
    found: AllocationPaths = write_allocation(paths, 1, [(CELLS[0], 0)], began_at=[NOW])
    write_queue(paths, job_state(1, "RUNNING"))
    assert cancel.cancel_sweep(paths).endswith("not installed here; the requests stay with the 1 allocations")
    assert found.cancel.exists()
    assert not found.ended.exists()
