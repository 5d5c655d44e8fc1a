"""A short slice of the fault campaign (`make chaos` is the whole), and whether its checker can see at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import chaos
from tests.cluster.check import check
from tests.cluster.ground import Ground
from tests.cluster.lab import missing_programs
from tests.cluster.standin.control import StandIn

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def test_eight_faults_on_the_real_slurm_break_no_invariant() -> None:
    if because := missing_programs():
        pytest.skip(because)
    result = chaos.run_slice(8, seed=5)
    assert result.violations == []
    assert result.num_faults >= 5


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A sweep that nothing happened to."""
    standin = StandIn.up()
    ground = Ground(tmp_path_factory.mktemp("calm"), standin.env)
    ground.prepare(trials=1, steps=10, gpus=(2,), site=chaos.SITE)
    ground.drive()
    assert ground.driver is not None and ground.driver.wait(120) == 0, ground.log.read_text()
    ground.look()
    standin.down()
    return ground


def test_a_calm_sweep_has_no_violation(finished: Ground) -> None:
    verdict = check(finished)
    assert verdict.violations == [] and dict(verdict.outcomes) == {"ok": 2}


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _lose_a_step(trial: Path) -> None:
    path = trial / "ranks" / "1.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def _repeat_a_step(trial: Path) -> None:
    path = trial / "ranks" / "0.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")


def _disagree(trial: Path) -> None:
    path = trial / "ranks" / "1.jsonl"
    lines = path.read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | {"grad_norm": 77.0})
    path.write_text("\n".join(lines) + "\n")


def _launch_again(trial: Path) -> None:
    """As if an ok attempt had been put aside and run once more."""
    shutil.copytree(trial, trial / "attempts" / "1", ignore=shutil.ignore_patterns("attempts"))
    _edit(trial / "outcome.json", lambda document: document.update(attempt=2))


def _skip_a_number(trial: Path) -> None:
    _edit(trial / "outcome.json", lambda document: document.update(attempt=2))


BREAKS = {
    "no outcome": lambda trial: (trial / "outcome.json").unlink(),
    "has steps [0, 1, 2, 3, 4, 5, 6, 7, 8]": _lose_a_step,
    "has steps [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]": _repeat_a_step,
    "the ranks have": _disagree,
    "was final (ok), and launched again": _launch_again,
    "attempts are numbered [2]": _skip_a_number,
    "its ok outcome was changed": lambda trial: _edit(trial / "outcome.json", lambda found: found.update(because="x")),
    "nobody says that it is over": lambda trial: (trial.parents[1] / "allocations" / "1" / "ended.json").unlink(),
}


@pytest.mark.parametrize("said", BREAKS)
def test_the_checker_sees_what_is_wrong(finished: Ground, tmp_path: Path, said: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("code"))
    ground = Ground(folder, finished.env, seen_final=finished.seen_final, seen_claims=finished.seen_claims)
    BREAKS[said](next(ground.trial_folders()))
    assert any(said in text for text in check(ground).violations)
