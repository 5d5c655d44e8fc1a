"""`save:` of a matrix: every mistake in it is found before anything runs, at its place; the rest reaches trials."""

from __future__ import annotations

from pathlib import Path

import pytest

from egobench.errors import InvalidInput
from egobench.launch.sweep import trial_of
from egobench.plan.expand import plan
from egobench.records.store import SweepPaths
from egobench.spec.keep import Save
from egobench.spec.matrix import load_matrix

WORKLOAD = """why: test
model: {name: egotiny}
data: {format: egoworld, domain: workshop, num_train: 10, num_validation: 10}
recipe: {num_steps: 10, learning_rate: 1.0e-3, max_length: 96}
image_px: 64
"""


def place(folder: Path, save: str) -> Path:
    (folder / "benchmarks").mkdir(parents=True)
    (folder / "benchmarks" / "w.yaml").write_text(WORKLOAD)
    path = folder / "matrix.yaml"
    path.write_text(f"name: small\nwhy: test\naxes: {{workload: [w]}}\n{save}")
    return path


@pytest.mark.parametrize(
    ("save", "expected"),
    [
        ("{acceptable_loss_h: 0}", "4:27: save.acceptable_loss_h: 0"),
        ("{acceptable_loss_h: soon}", "4:27: save.acceptable_loss_h: 'soon'"),
        ("{export: megred}", "4:16: save.export: 'megred' is not one of the values; allowed: none, merged, adapters"),
        ("{acceptable_loss: 1}", "4:8: save.acceptable_loss: "),
    ],
)
def test_mistakes(tmp_path: Path, save: str, expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_matrix(place(tmp_path, f"save: {save}\n"))
    assert expected in str(caught.value)


def test_what_is_saved_is_no_part_of_a_cell(tmp_path: Path) -> None:
    plans = []
    for name, text in (("with", "save: {acceptable_loss_h: 0.5, export: adapters}\n"), ("without", "")):
        plans.append(plan(load_matrix(place(tmp_path / name, text))))
    kept, plain = plans
    assert kept.save == Save(acceptable_loss_h=0.5, export="adapters")
    assert plain.save == Save()
    assert [cell.cell_id for cell in kept.cells] == [cell.cell_id for cell in plain.cells]
    trial = trial_of(kept, kept.cells[0], 0, SweepPaths(tmp_path / "runs"))
    assert trial.save == kept.save
