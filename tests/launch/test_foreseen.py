"""Predictions at submission: pruned cells are not launched, canaries are, and what was foretold stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from egobench.errors import InvalidInput
from egobench.launch.command import sweep_command
from egobench.launch.foreseen import as_foreseen, canaries, parse_share, pruned_line
from egobench.launch.prepare import dry_packing, expectation
from egobench.launch.sweep import Todo, Wish, look_up, write_plan
from egobench.launch.watch.expected import Expected
from egobench.records.outcome import Outcome
from egobench.records.predicted import Predicted
from egobench.records.store import SweepPaths, read_document, write_document
from egobench.records.sweep import PlannedCell, Sweep
from tests.predict.cells import WORKLOAD

ROOT = Path(__file__).parents[2]
A100 = str(ROOT / "slurm_templates" / "a100-80gb-8.yaml")
MATRIX: dict[str, Any] = {
    "name": "foreseen",
    "why": "test",
    "workloads": {"w": WORKLOAD},
    "axes": {
        "strategy": ["ddp", "fsdp"],
        "gpus": [4],
        "precision": ["fp32"],
        "attention": ["eager", "sdpa"],
        "checkpointing": ["none", "full"],
        "num_steps": [100, 300],
    },
    "baseline": {"strategy": "fsdp", "attention": "eager", "checkpointing": "none", "num_steps": 100},
    "trials": 2,
}


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump(MATRIX, sort_keys=False))
    return path


def looked_up(matrix: Path, **wish: Any) -> Todo:
    return look_up(matrix, matrix.parent / "runs", Wish(site=A100, **wish))


def counts(sweep: Sweep) -> tuple[int, int, int]:
    """Return how many cells run, are pruned, and are canaries."""
    pruned = sum(cell.outcome == "predicted_oom" for cell in sweep.cells)
    return len(sweep.runnable()), pruned, sum(cell.is_canary for cell in sweep.cells)


def finish(todo: Todo, cell_id: str, took_s: float = 600.0, outcome: Any = "ok") -> None:
    document = Outcome(outcome=outcome, cell_id=cell_id, trial=0, started_at=1e9, ended_at=1e9 + took_s)
    write_document(todo.paths.trial(cell_id, 0).outcome, document)


def test_what_cannot_fit_is_not_launched(matrix: Path) -> None:
    todo = looked_up(matrix)
    assert counts(todo.sweep) == (8, 8, 0)
    assert len(todo.asked) == 16  # two trials of what fits
    assert all("-fsdp-" in ref.cell_id for ref in todo.asked)
    assert "cells predicted to run out of memory, and not launched: 8 " in pruned_line(todo.sweep)
    write_plan(todo)
    kept = read_document(todo.paths.sweep, Sweep)
    assert kept == todo.sweep
    assert all(cell.because and cell.predicted for cell in kept.cells if cell.outcome == "predicted_oom")


def test_canaries_are_the_same_every_time_and_more_of_them_are_added(matrix: Path) -> None:
    few, more = (looked_up(matrix, canary=share) for share in (0.05, 0.5))
    assert counts(few.sweep) == (9, 7, 1)
    assert counts(more.sweep) == (12, 4, 4)
    chosen = [{cell.cell_id for cell in todo.sweep.cells if cell.is_canary} for todo in (few, more)]
    assert chosen[0] < chosen[1]
    assert chosen[0] == {cell.cell_id for cell in looked_up(matrix, canary=0.05).sweep.cells if cell.is_canary}
    (canary,) = (cell for cell in few.sweep.cells if cell.is_canary)
    assert canary.because == "" and canary.predicted is not None and canary.predicted.verdict == "predicted_oom"
    assert {ref.cell_id for ref in few.asked} > {canary.cell_id}
    assert "not launched: 7 " in pruned_line(few.sweep) and "as canaries: 1" in pruned_line(few.sweep)


def test_a_canary_stays_one_without_being_asked_for_again(matrix: Path) -> None:
    write_plan(looked_up(matrix, canary=0.05))
    assert counts(looked_up(matrix).sweep) == (9, 7, 1)


def test_another_sweep_has_other_canaries(matrix: Path) -> None:
    sweep = looked_up(matrix).sweep
    assert any(canaries(sweep, 0.1) != canaries(sweep.model_copy(update={"name": str(n)}), 0.1) for n in range(9))


@pytest.mark.parametrize(("text", "share"), [(None, 0.0), ("5%", 0.05), ("0.2", 0.2), ("100%", 1.0), ("0", 0.0)])
def test_shares(text: str | None, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["5 percent", "-1%", "101%", "2", "", "nan"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"--canary: .* is no share; allowed: 0% to 100%; write 5% or 0.05"):
        parse_share(text)


def changed(sweep: Sweep, **fields: Any) -> Sweep:
    """Return the plan as a calibration would have it: other predictions, and with them other outcomes."""

    def one(cell: PlannedCell) -> PlannedCell:
        assert cell.predicted is not None
        return cell.model_copy(update={"predicted": cell.predicted.model_copy(update=fields)})

    return sweep.model_copy(update={"cells": tuple(map(one, sweep.cells))})


def test_what_was_foretold_of_a_cell_that_has_begun_stays(matrix: Path) -> None:
    todo = looked_up(matrix)
    write_plan(todo)
    begun, other = todo.sweep.runnable()[:2]
    finish(todo, begun.cell_id)
    fitted = changed(todo.sweep, predicted_step_time_s=123.0)
    after = {cell.cell_id: cell for cell in as_foreseen(fitted, todo.paths).cells}
    assert after[begun.cell_id].predicted == begun.predicted
    assert after[other.cell_id].predicted is not None
    assert after[other.cell_id].predicted.predicted_step_time_s == 123.0  # type: ignore[union-attr]


def test_a_cell_that_has_begun_is_not_dropped_later(matrix: Path) -> None:
    todo = looked_up(matrix)
    write_plan(todo)
    begun, other = todo.sweep.runnable()[:2]
    finish(todo, begun.cell_id)
    dropped = tuple(
        cell.model_copy(update={"outcome": "predicted_oom", "because": "no"}) if cell.outcome == "pending" else cell
        for cell in todo.sweep.cells
    )
    sweep = as_foreseen(todo.sweep.model_copy(update={"cells": dropped}), todo.paths)
    assert [cell.cell_id for cell in sweep.runnable()] == [begun.cell_id]
    assert next(cell for cell in sweep.cells if cell.cell_id == other.cell_id).outcome == "predicted_oom"


def test_a_cell_that_began_before_there_were_predictions_gets_none(matrix: Path) -> None:
    todo = looked_up(matrix)
    old = changed(todo.sweep).model_copy(
        update={"cells": tuple(cell.model_copy(update={"predicted": None}) for cell in todo.sweep.cells)}
    )
    write_document(todo.paths.sweep, old)
    begun = todo.sweep.runnable()[0]
    finish(todo, begun.cell_id)
    after = {cell.cell_id: cell for cell in looked_up(matrix).sweep.cells}
    assert after[begun.cell_id].predicted is None
    assert sum(cell.predicted is not None for cell in after.values()) == 15


def test_old_records_are_read() -> None:
    cell = {"cell_id": "c", "axes": {}, "outcome": "pending"}
    assert PlannedCell.model_validate(cell).predicted is None


def test_trials_are_expected_to_take_what_is_predicted(matrix: Path) -> None:
    todo = looked_up(matrix)
    expected_s = expectation(todo, lambda ref: None)
    cells = {cell.cell_id: cell for cell in todo.sweep.runnable()}
    for ref in todo.asked:
        predicted = cells[ref.cell_id].predicted
        assert predicted is not None and predicted.predicted_trial_s is not None
        assert expected_s(ref) == min(predicted.predicted_trial_s, todo.sweep.site.trial_time_limit_s)
    assert len({expected_s(ref) for ref in todo.asked}) > 2
    packed = [draft for array in dry_packing(todo, Wish(site=A100)).arrays for draft in array.drafts]
    assert sum(draft.expected_s for draft in packed) == pytest.approx(sum(map(expected_s, todo.asked)))


def test_observed_times_win_and_correct_the_others(matrix: Path) -> None:
    todo = looked_up(matrix)
    first, second = todo.sweep.runnable()[:2]
    assert first.predicted is not None and second.predicted is not None
    assert first.predicted.predicted_trial_s is not None and second.predicted.predicted_trial_s is not None
    took_s = 2 * first.predicted.predicted_trial_s
    done = Outcome(outcome="ok", cell_id=first.cell_id, trial=0, started_at=1e9, ended_at=1e9 + took_s)
    found = Expected.of(todo.sweep.cells, [done, None])
    assert found.of_cell_s(first.cell_id) == pytest.approx(took_s)
    assert found.of_cell_s(second.cell_id) == pytest.approx(2 * second.predicted.predicted_trial_s)
    assert found.of_cell_s("unknown") is None and found.overall_s == pytest.approx(took_s)
    nothing = Expected.of([PlannedCell(cell_id="c", axes={}, outcome="pending", predicted=Predicted())], [])
    assert nothing.of_cell_s("c") is None and nothing.overall_s is None


def test_the_command_says_what_it_leaves_out(matrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = matrix.parent / "runs"
    assert sweep_command(matrix, runs=runs, site=A100, canary="50%", dry_run=True, as_json=True) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["num_trials"] == 2 * 12
    assert "not launched: 4 " in err and "launched nevertheless, as canaries: 4" in err
    assert not SweepPaths(runs / "foreseen").sweep.exists()
