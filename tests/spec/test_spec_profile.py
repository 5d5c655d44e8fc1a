"""`profile:` of a matrix: every mistake in it is found before anything runs, at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from egobench.errors import InvalidInput
from egobench.launch.sweep import trial_of
from egobench.plan.expand import plan
from egobench.records.store import SweepPaths
from egobench.records.trial import Trial
from egobench.spec.matrix import load_matrix

WORKLOAD = """why: test
model: {name: egotiny}
data: {format: egoworld, domain: workshop, num_train: 10, num_validation: 10}
recipe: {num_steps: 10, learning_rate: 1.0e-3, max_length: 96}
image_px: 64
"""


def place(folder: Path, profile: str, axes: str = "precision: [fp32, bf16]") -> Path:
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "w.yaml").write_text(WORKLOAD)
    path = folder / "matrix.yaml"
    path.write_text(f"name: small\nwhy: test\naxes: {{workload: [w], {axes}}}\nprofile: {profile}\n")
    return path


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("{steps: [-1, 2]}", ["4:19: profile.steps[0]: -1 is out of range; allowed: at least 0"]),
        ("{steps: [2, 3, 2]}", ["4:25: profile.steps[2]: 2 stands twice; remove one"]),
        ("{steps: []}", ["4:18: profile.steps: 0 values; allowed: at least 1"]),
        (f"{{steps: {list(range(12))}}}", ["4:18: profile.steps: 12 values; allowed: at most 10"]),
        ("{steps: [2], tool: nsight}", ["4:29: profile.tool: 'nsight' is not one of the values; allowed: torch, nsys"]),
        ("{steps: [2], where: {}}", ["4:30: profile.where: the selection is empty"]),
        ("{steps: [2], where: {precison: bf16}}", ["4:31: profile.where.precison: 'precison' is not a known axis"]),
        ("{steps: [2], where: {precision: bf17}}", ["4:42: profile.where.precision: 'bf17' is not a precision"]),
        ("{steps: [2], where: {gpus: 4}}", ["4:30: profile.where: selects no point of this matrix; there are gpus 1"]),
        (
            "{steps: [9, 10, 99]}",
            ["4:22: profile.steps[1]: 10, but no cell that is profiled has more than 10 steps; allowed: 0 to 9",
             "4:26: profile.steps[2]: 99, but no cell that is profiled has more than 10 steps; allowed: 0 to 9"],
        ),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, profile: str, expected: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        plan(load_matrix(place(tmp_path, profile)))
    found = [str(one).partition("matrix.yaml:")[2] for one in caught.value.mistakes]
    assert len(found) == len(expected)
    assert all(one.startswith(start) for one, start in zip(found, expected, strict=True)), found


def test_a_step_that_one_of_the_cells_takes_is_no_mistake(tmp_path: Path) -> None:
    sweep = plan(load_matrix(place(tmp_path, "{steps: [12]}", "num_steps: [10, 20]")))
    assert sweep.profile is not None and sweep.profile.steps == (12,)


def test_only_the_longest_of_the_selected_cells_counts(tmp_path: Path) -> None:
    profile = "{steps: [12], where: {precision: bf16}}"
    path = place(tmp_path, profile, "precision: [fp32]")
    path.write_text(path.read_text() + "include: [{workload: w, precision: bf16}, {workload: w, num_steps: 20}]\n")
    with pytest.raises(InvalidInput, match="12, but no cell that is profiled has more than 10 steps"):
        plan(load_matrix(path))


def test_only_selected_cells_are_profiled(tmp_path: Path) -> None:
    sweep = plan(load_matrix(place(tmp_path, "{steps: [7, 8], where: {precision: [bf16]}}")))
    trials: dict[str, Trial] = {
        str(cell.axes["precision"]): trial_of(sweep, cell, 0, SweepPaths(tmp_path / "runs" / "small"))
        for cell in sweep.runnable()
    }
    assert trials["fp32"].profile is None
    profile = trials["bf16"].profile
    assert profile is not None and profile.steps == (7, 8) and profile.tool == "torch"


def test_a_profile_is_no_part_of_a_cell(tmp_path: Path) -> None:
    ids = []
    for name, profile in (("a", "{steps: [2]}"), ("b", "{steps: [3], tool: nsys}")):
        (tmp_path / name).mkdir()
        ids.append([cell.cell_id for cell in plan(load_matrix(place(tmp_path / name, profile))).cells])
    assert ids[0] == ids[1]
