"""status, show, logs and cancel, from another process than the one that runs the sweep."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from egobench.errors import InvalidInput
from egobench.launch.command import parse_retry, sweep_command
from egobench.launch.order import trial_order
from egobench.launch.watch.command import cancel_command, logs_command, show_command, status_command
from egobench.plan.expand import plan
from egobench.records.sweep import find_sweep
from egobench.spec.matrix import load_matrix
from tests.launch.sweeps import run_sweep, running_pids, start_sweep, state_of, wait_for, write_matrix


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    drill = "drills:\n  - {kind: raise, rank: 1, step: 2, phase: forward, where: {attention: eager}}"
    write_matrix(folder, trials=2, more=drill)
    assert run_sweep(folder)[0] == 3
    return folder


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    return dict(found)


def test_status(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_command("small", runs=swept / "runs") == 0
    text = capsys.readouterr().out
    assert "trials: 4 planned: 2 ok, 2 crash" in text
    assert "cells:  2 planned: 1 ok, 1 crash" in text
    status_command(runs=swept / "runs", as_json=True)
    found = document(capsys)
    assert found["ledger"] == state_of(swept).ledger
    assert [trial["outcome"] for trial in found["trials"]].count("crash") == 2  # type: ignore[attr-defined, union-attr]


def test_show_and_logs(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crashed = next(trial for trial in state_of(swept).trials if trial.outcome == "crash").cell.cell_id
    assert show_command(crashed, runs=swept / "runs") == 0
    text = capsys.readouterr().out
    assert "attention: eager" in text
    assert "trial 0: crash: rank 1, forward, step 2: DrillError" in text
    assert logs_command(crashed, runs=swept / "runs") == 0
    assert "[1!] egobench.train.drill.DrillError: drill: this rank was asked to raise" in capsys.readouterr().out
    assert show_command(crashed[-6:], runs=swept / "runs", as_json=True) == 0
    assert document(capsys)["outcome"] == "crash"
    with pytest.raises(InvalidInput, match="2 cells have this in their id"):
        show_command("w", runs=swept / "runs")
    with pytest.raises(InvalidInput, match="no cell has this in its id"):
        show_command("zzz", runs=swept / "runs")
    with pytest.raises(InvalidInput, match="there is no trial 9"):
        logs_command(crashed, trial=9, runs=swept / "runs")


def test_sweeps_are_found(swept: Path, tmp_path: Path) -> None:
    assert find_sweep(None, swept / "runs") == swept / "runs" / "small"
    assert find_sweep(str(swept / "runs" / "small"), tmp_path) == swept / "runs" / "small"
    with pytest.raises(InvalidInput, match="there is no sweep"):
        find_sweep("other", swept / "runs")


def test_half_written_documents_are_no_results(swept: Path) -> None:
    trial = state_of(swept).trials[0]
    whole = trial.paths.outcome.read_bytes()
    try:
        trial.paths.outcome.write_bytes(whole[:-30])
        assert state_of(swept).trials[0].outcome == "pending"
    finally:
        trial.paths.outcome.write_bytes(whole)
    assert state_of(swept).trials[0].outcome == trial.outcome


def test_matrix_changed_between_runs(swept: Path, tmp_path: Path) -> None:
    """Cells that left the matrix stay on disk and are named; the ledger counts the plan of today."""
    write_matrix(tmp_path, attentions="sdpa", trials=1)
    assert run_sweep(tmp_path)[0] == 0
    gone = state_of(tmp_path).trials[0].cell.cell_id
    write_matrix(tmp_path, attentions="eager", trials=1)
    code, out, said = run_sweep(tmp_path)
    assert (code, out) == (0, "small: 1 planned: 1 ok\n")
    assert f"not in the plan any more (kept): {gone}" in said
    write_matrix(tmp_path, attentions="sdpa, eager", trials=1)
    code, out, said = run_sweep(tmp_path)
    assert (code, out) == (0, "small: 2 planned: 2 ok\n")
    assert "trials to run" not in said


def test_only_limit_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = write_matrix(tmp_path, trials=3)
    runs = tmp_path / "runs"
    assert sweep_command(matrix, runs=runs, only="attention=eager", limit=2, dry_run=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("eager" in line for line in lines)
    assert not runs.exists()
    with pytest.raises(InvalidInput, match="did you mean 'crash'"):
        parse_retry("crsh")


def test_order_interleaves_and_repeats(tmp_path: Path) -> None:
    write_matrix(tmp_path, trials=3, more="  padding: [max, dynamic]\nbaseline: {attention: eager, padding: max}")
    sweep = plan(load_matrix(tmp_path / "matrix.yaml"))
    order = trial_order(sweep)
    assert order == trial_order(sweep)
    assert len(set(order)) == len(order) == 12
    rounds = [order[start : start + 4] for start in (0, 4, 8)]
    for number, part in enumerate(rounds):
        assert {trial for _, trial in part} == {number}
        assert [part[0][0]] == list(sweep.baselines.values())
    assert len({tuple(cell for cell, _ in part) for part in rounds}) > 1


def test_all_baselines_come_first_in_each_round(tmp_path: Path) -> None:
    write_matrix(tmp_path, trials=3, more="  padding: [max, dynamic]")
    sweep = plan(load_matrix(tmp_path / "matrix.yaml"))
    baselines = {"w": sweep.cells[3].cell_id, "another": sweep.cells[2].cell_id}
    order = trial_order(sweep.model_copy(update={"baselines": baselines}))
    assert len(order) == 12
    for start in (0, 4, 8):
        assert {cell_id for cell_id, _ in order[start : start + 2]} == set(baselines.values())


@pytest.fixture
def long_sweep(tmp_path: Path) -> Iterator[Path]:
    """A sweep whose login process was interrupted by Ctrl-C."""
    write_matrix(tmp_path, trials=1, steps=5000)
    login = start_sweep(tmp_path)
    wait_for(lambda: running_pids(tmp_path))
    login.send_signal(signal.SIGINT)
    _, said = login.communicate(timeout=60)
    assert login.returncode == 130
    assert f"egobench cancel {tmp_path / 'runs' / 'small'}" in said
    yield tmp_path
    cancel_command(runs=tmp_path / "runs")


def test_interrupted_but_going_on_then_cancelled(long_sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = long_sweep / "runs"
    status_command(runs=runs, as_json=True)
    found = document(capsys)
    running = next(trial for trial in found["trials"] if trial["outcome"] == "running")  # type: ignore[attr-defined]
    assert len(running["ranks"]) == 2
    assert running["ranks"][0]["step"] >= 1
    # One cell: its trial ends, the other cell's begins.
    assert cancel_command(cell=running["cell_id"], runs=runs) == 0
    assert "2 planned: 1 cancelled" in capsys.readouterr().out
    ranks = wait_for(lambda: running_pids(long_sweep))
    assert cancel_command(runs=runs) == 0
    assert "allocation 1 ended; 2 planned: 2 cancelled" in capsys.readouterr().out
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert not state_of(long_sweep).allocations


def test_cancel_with_nothing_running(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cancel_command(runs=swept / "runs") == 0
    assert "nothing runs" in capsys.readouterr().out
