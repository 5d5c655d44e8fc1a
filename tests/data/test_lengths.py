"""The `lengths:` of a workload: what training would see, in a line that its file takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from egobench.data import command
from egobench.data.lengths import lengths_of, summed
from egobench.spec.pieces import load_workload
from egobench.spec.workload import Workload

WORKSHOP = Path(__file__).parents[2] / "benchmarks" / "egotiny-workshop.yaml"


def test_lengths_are_those_of_training_samples(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.lengths(WORKSHOP, as_json=False) == 0
    said = yaml.safe_load(capsys.readouterr().out)["lengths"]
    workload = load_workload(WORKSHOP)
    found = Workload.model_validate(workload.model_dump() | {"lengths": said}).lengths
    assert found is not None
    assert 16 < found.mean <= (found.p90 or 0) <= found.longest <= workload.recipe.max_length
    assert found.supervised is not None and found.supervised >= 2


def test_what_does_not_fit_is_counted() -> None:
    workload = load_workload(WORKSHOP)
    short = workload.model_copy(update={"recipe": workload.recipe.model_copy(update={"max_length": 30})})
    found = lengths_of(short, WORKSHOP.parent)
    assert found["longest"] <= 30 and found["num_cut"] + found["num_too_long"] > 0


def test_sums() -> None:
    assert summed([10, 20, 30], [1, 2, 3]) == {"mean": 20.0, "p90": 28.0, "longest": 30, "supervised": 2.0}
    assert summed([], []) == {"mean": 0.0, "p90": 0.0, "longest": 0, "supervised": 0.0}
