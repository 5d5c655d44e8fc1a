"""`depends:`: which cell waits for which, what becomes of the children of a dropped cell, and every mistake in it."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from egobench.errors import InvalidInput
from egobench.plan.cells import expand
from egobench.plan.command import plan_command
from egobench.plan.expand import plan, to_cell
from egobench.plan.identity import cell_id_of
from egobench.plan.rules import first_reason
from egobench.records.sweep import PlannedCell, Sweep
from egobench.spec.matrix import load_matrix
from egobench.spec.variants import lineage

WORKLOAD: dict[str, Any] = {
    "why": "test",
    "model": {"name": "egotiny"},
    "data": {"format": "egoworld", "domain": "workshop", "num_train": 10, "num_validation": 10},
    "recipe": {"num_steps": 10, "learning_rate": 1.0e-3, "max_length": 96},
    "image_px": 64,
}
MATRIX: dict[str, Any] = {
    "name": "small",
    "why": "test",
    "workloads": {"w": WORKLOAD},
    "axes": {"strategy": ["ddp"], "gpus": [1, 2, 4], "precision": ["fp32", "bf16"]},
}
CHAIN = [
    {"where": {"gpus": 4}, "parent": {"gpus": 2}, "because": "a 4-GPU run only makes sense after a good 2-GPU run"},
    {"where": {"gpus": 2}, "parent": {"gpus": 1}, "needs": "end"},
]


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "matrix.yaml"
    data = json.loads(json.dumps({**MATRIX, **changes}))  # no object twice: YAML would write aliases
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def planned(folder: Path, **changes: Any) -> Sweep:
    return plan(load_matrix(written(folder, **changes)))


def cell_at(sweep: Sweep, **axes: Any) -> PlannedCell:
    (cell,) = (cell for cell in sweep.cells if all(cell.axes.get(name) == value for name, value in axes.items()))
    return cell


def told(folder: Path, **changes: Any) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        planned(folder, **changes)
    return [str(one).replace(f"{folder}/", "") for one in caught.value.mistakes]


def test_a_chain_of_parents(tmp_path: Path) -> None:
    sweep = planned(tmp_path, depends=CHAIN)
    for precision in ("fp32", "bf16"):
        cells = {gpus: cell_at(sweep, gpus=gpus, precision=precision) for gpus in (1, 2, 4)}
        assert (cells[4].parent, cells[4].needs) == (cells[2].cell_id, "ok")
        assert (cells[2].parent, cells[2].needs) == (cells[1].cell_id, "end")
        assert cells[1].parent is None
    assert {cell.outcome for cell in sweep.cells} == {"pending"}
    assert Sweep.model_validate_json(sweep.model_dump_json()) == sweep


def test_what_waits_is_no_part_of_the_identity(tmp_path: Path) -> None:
    without = [cell.cell_id for cell in planned(tmp_path).cells]
    assert [cell.cell_id for cell in planned(tmp_path, depends=CHAIN).cells] == without


def test_a_parents_drill_is_part_of_its_id(tmp_path: Path) -> None:
    drill = {"where": {"gpus": 2, "precision": "bf16"}, "kind": "oom"}
    sweep = planned(tmp_path, depends=CHAIN, drills=[drill])
    parent = cell_at(sweep, gpus=2, precision="bf16")
    assert parent.drill is not None
    assert cell_at(sweep, gpus=4, precision="bf16").parent == parent.cell_id
    assert cell_at(sweep, gpus=4, precision="fp32").parent == cell_at(sweep, gpus=2, precision="fp32").cell_id


def test_a_dropped_parent_drops_all_that_hang_on_it(tmp_path: Path) -> None:
    exclude = [{"where": {"gpus": 1, "precision": "bf16"}, "because": "not asked"}]
    sweep = planned(tmp_path, depends=CHAIN, exclude=exclude)
    first, second, third = (cell_at(sweep, gpus=gpus, precision="bf16") for gpus in (1, 2, 4))
    assert first.because.endswith(": not asked")
    assert second.because == f"its parent (gpus 1) was dropped: {first.because}"
    assert third.because == f"its parent (gpus 2) was dropped: {second.because}"
    assert {cell.outcome for cell in (first, second, third)} == {"incompatible"}
    assert all(cell_at(sweep, gpus=gpus, precision="fp32").outcome == "pending" for gpus in (1, 2, 4))


def test_its_own_reason_comes_first(tmp_path: Path) -> None:
    exclude = [{"where": {"precision": "bf16"}, "because": "not asked"}]
    sweep = planned(tmp_path, depends=CHAIN, exclude=exclude)
    assert cell_at(sweep, gpus=4, precision="bf16").because.startswith("excluded at matrix.yaml:")


def test_a_baseline_whose_parent_was_dropped_is_refused(tmp_path: Path) -> None:
    exclude = [{"where": {"gpus": 2}, "because": "not asked"}]
    baseline = {"gpus": 4, "precision": "fp32"}
    (mistake,) = told(tmp_path, depends=CHAIN, exclude=exclude, baseline=baseline)
    assert "selects only cells of workload 'w' that cannot run" in mistake
    assert "its parent (gpus 2) was dropped" in mistake


def test_axes_that_move_together_and_included_parents(tmp_path: Path) -> None:
    sweep = planned(
        tmp_path,
        axes={"precision": ["fp32", "bf16"]},
        zip=[{"strategy": ["single", "ddp"], "gpus": [1, 2]}],
        include=[{"strategy": "ddp", "gpus": 4, "precision": "bf16"}, {"gpus": 1, "padding": "max"}],
        depends=[
            {"where": {"gpus": 2}, "parent": {"strategy": "single", "gpus": 1}},
            {"where": {"gpus": 4}, "parent": {"gpus": 2}},
            {"where": {"gpus": 1, "precision": "fp32", "padding": "dynamic"}, "parent": {"padding": "max"}},
        ],
    )
    padded = cell_at(sweep, padding="max")
    assert cell_at(sweep, gpus=1, precision="fp32", padding="dynamic").parent == padded.cell_id
    for precision in ("fp32", "bf16"):
        one = cell_at(sweep, gpus=1, precision=precision, padding="dynamic")
        assert cell_at(sweep, gpus=2, precision=precision).parent == one.cell_id
    assert cell_at(sweep, gpus=4).parent == cell_at(sweep, gpus=2, precision="bf16").cell_id


def test_what_becomes_of_included_parents(tmp_path: Path) -> None:
    sweep = planned(
        tmp_path,
        axes={"precision": ["fp32", "bf16"]},
        include=[{"padding": "max", "precision": precision} for precision in ("fp32", "bf16")],
        exclude=[{"where": {"padding": "max", "precision": "bf16"}, "because": "not asked"}],
        depends=[{"where": {"padding": "dynamic"}, "parent": {"padding": "max"}}],
    )
    assert [cell.outcome for cell in sweep.cells] == ["pending", "incompatible", "pending", "incompatible"]
    assert sweep.cells[1].because.startswith("its parent (padding max) was dropped: excluded at")
    assert [cell.parent for cell in sweep.cells[:2]] == [cell.cell_id for cell in sweep.cells[2:]]


def test_a_parent_of_another_workload(tmp_path: Path) -> None:
    other = {**WORKLOAD, "data": {**WORKLOAD["data"], "num_train": 20}}
    sweep = planned(
        tmp_path,
        workloads={"w": WORKLOAD, "v": other},
        axes={"workload": ["v", "w"], "precision": ["fp32", "bf16"]},
        depends=[{"where": {"workload": "v"}, "parent": {"workload": "w"}}],
    )
    assert [cell.parent for cell in sweep.cells] == [*(cell.cell_id for cell in sweep.cells[2:]), None, None]


AWQ = {"name": "awq", "kind": "awq", "where": {"gpus": [2, 4]}}


def test_a_variant_waits_for_the_cell_it_was_made_from(tmp_path: Path) -> None:
    drill = {"where": {"gpus": 4}, "kind": "oom"}
    sweep = planned(tmp_path, depends=CHAIN, drills=[drill], variants=[AWQ])
    trained = {cell.cell_id: cell for cell in sweep.cells if "variant" not in cell.axes}
    variants = [cell for cell in sweep.cells if "variant" in cell.axes]
    assert len(variants) == 4
    for variant in variants:
        assert variant.parent is not None and variant.needs == "ok"
        assert {**trained[variant.parent].axes, "variant": "awq"} == variant.axes
        assert (variant.is_alone, variant.num_ranks) == (True, 1)


def test_a_variant_of_a_variant_waits_for_that_one(tmp_path: Path) -> None:
    student = {"name": "student", "kind": "distilled", "distillation": {"student": {"layers": 1}}}
    small = {"name": "small", "kind": "int8", "of": "student", "where": {"gpus": 2}}
    sweep = planned(tmp_path, variants=[student, small])
    cells = {cell.cell_id: cell for cell in sweep.cells}
    found = [cell for cell in sweep.cells if cell.axes.get("variant") == "small"]
    assert found
    for cell in found:
        assert cell.parent is not None
        above = cells[cell.parent]
        assert above.axes == {**cell.axes, "variant": "student"}
        assert above.parent is not None and "variant" not in cells[above.parent].axes
        # A student is trained as its teacher was, all of it; what is made of it needs one rank.
        assert (above.num_ranks, cell.num_ranks) == (2, 1)
        assert to_cell(sweep, cell).lineage == ("student", "small")
        assert to_cell(sweep, above).axes == above.axes  # the distillation loss itself tells what its FLOPs are


def test_a_student_may_be_trained_longer_than_its_teacher(tmp_path: Path) -> None:
    own = {"num_steps": 77, "learning_rate": 0.5, "num_warmup_steps": 7}
    student = {"name": "student", "kind": "distilled", "distillation": {"student": {"layers": 1}, **own}}
    sweep = planned(tmp_path, variants=[student])
    cell = next(cell for cell in sweep.cells if cell.axes.get("variant") == "student")
    teacher = next(one for one in sweep.cells if one.cell_id == cell.parent)
    taught, trained = to_cell(sweep, cell), to_cell(sweep, teacher)
    assert own == taught.workload.recipe.model_dump(include=set(own))
    assert {**taught.axes, **{name: trained.axes[name] for name in ("num_steps", "learning_rate")}} == cell.axes
    assert trained.workload.recipe == sweep.workloads["w"].recipe.model_copy(
        update={name: trained.axes[name] for name in ("num_steps", "learning_rate", "max_length")}
    )


def test_the_id_of_a_variant_follows_from_its_settings_and_its_source_s(tmp_path: Path) -> None:
    def ids(folder: str, **changes: Any) -> list[str]:
        (tmp_path / folder).mkdir()
        student = {"name": "student", "kind": "distilled", "distillation": {"student": {"layers": 1}, **changes}}
        small = {"name": "small", "kind": "int8", "of": "student"}
        sweep = planned(tmp_path / folder, variants=[student, small])
        chosen = [cell for cell in sweep.cells if cell.axes.get("variant") == "small"]
        variants = sweep.variants
        workload = sweep.workloads["w"]
        assert chosen[0].cell_id == cell_id_of(chosen[0].axes, workload, line=lineage(variants, "small"))
        return [cell.cell_id for cell in chosen]

    plain = ids("plain")
    assert plain == ids("again") == ids("other_chunks", chunk_bytes=4096)
    assert set(plain).isdisjoint(ids("warmer", temperature=2.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"depends": [{"where": {"gpus": [2, 4]}, "parent": {"gpus": 2}}]},
            "matrix.yaml:30:5: depends[0].where: selects cells that would wait for themselves: gpus 2",
        ),
        (
            {"depends": [{"where": {"gpus": 4}, "parent": {"gpus": 8}}]},
            "matrix.yaml:32:5: depends[0].parent: no cell of this matrix is gpus 8, precision fp32; the parent is a "
            "cell with these values and otherwise the axes of the one that waits; add that point, or narrow where:",
        ),
        (
            {"depends": [{"where": {"gpus": 8}, "parent": {"gpus": 4}}]},
            "depends[0].where: selects no point of this matrix; there are gpus 1, 2, 4",
        ),
        (
            {
                "axes": {"precision": ["fp32"]},
                "zip": [{"gpus": [1, 2], "strategy": ["single", "ddp"]}],
                "depends": [{"where": {"gpus": 2}, "parent": {"gpus": 1}}],
            },
            "no cell of this matrix is gpus 1, strategy ddp; the parent is a cell with these values and otherwise the "
            "axes of the one that waits; gpus, strategy move together: name all of them",
        ),
        (
            {"depends": [*CHAIN, {"where": {"precision": "bf16"}, "parent": {"precision": "fp32"}}]},
            "depends[2]: selects cells that depends[0] also selects, and asks for something else; one parent per cell",
        ),
        (
            {"depends": [CHAIN[0], {**CHAIN[0], "needs": "end"}]},
            "depends[1]: selects cells that depends[0] also selects, and asks for something else",
        ),
        (
            {"depends": [*CHAIN, {"where": {"gpus": 1, "precision": "bf16"}, "parent": {"gpus": 4}}]},
            "depends[0]: cells wait for each other in a circle: gpus 4 -> gpus 2 -> gpus 1 -> gpus 4; remove one",
        ),
        (
            {
                "include": [{"gpus": 4, "strategy": "ddp", "precision": "fp32", "padding": "max"}],
                "depends": [{"where": {"gpus": 4}, "parent": {"padding": "max"}}],
            },
            "no cell of this matrix is gpus 4, precision bf16, padding max",
        ),
    ],
)
def test_mistakes_at_their_places(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    found = told(tmp_path, **changes)
    assert any(words in one for one in found), found


def test_all_mistakes_come_at_once_and_with_the_others(tmp_path: Path) -> None:
    found = told(
        tmp_path,
        baseline={"gpus": 8},
        depends=[
            {"where": {"gpus": 4}, "parent": {"gpus": 8}},
            {"where": {"gpus": 2}, "parent": {"gpus": 2}},
            {"where": {"gpus": 1}, "parent": {"precision": "bf16"}},
            {"where": {"gpus": 1, "precision": "bf16"}, "parent": {"gpus": 1, "precision": "bf16"}},
        ],
    )
    for words in ("baseline: selects no cell", "depends[0].parent: no cell", "depends[1].where: selects cells that"):
        assert any(words in one for one in found), found
    assert sum("would wait for themselves" in one for one in found) == 3
    lines = [int(one.split(":")[1]) for one in found]
    assert lines == sorted(lines)


def test_the_same_dependency_twice_is_none_too_many(tmp_path: Path) -> None:
    again = {"where": {"gpus": 4, "strategy": "ddp"}, "parent": {"gpus": 2, "strategy": "ddp"}}
    assert planned(tmp_path, depends=[*CHAIN, again]).cells == planned(tmp_path, depends=CHAIN).cells


def printed(matrix: Path, form: Any, only: str | None = None) -> str:
    stream = io.StringIO()
    plan_command(matrix, form, only, stream)
    return stream.getvalue()


def test_every_output_shows_it(tmp_path: Path) -> None:
    matrix = written(tmp_path, depends=CHAIN)
    sweep = plan(load_matrix(matrix))
    parents = [cell.parent for cell in sweep.cells]
    document = json.loads(printed(matrix, "json"))
    assert [cell.get("parent") for cell in document["cells"]] == parents
    assert [cell.get("needs") for cell in document["cells"]] == [None, None, "end", "end", "ok", "ok"]
    assert [(row["parent"], row["num_cells"]) for row in document["waiting"]] == [({"gpus": 2}, 2), ({"gpus": 1}, 2)]
    rows = list(csv.DictReader(io.StringIO(printed(matrix, "csv"))))
    assert [row["parent"] or None for row in rows] == parents
    table = printed(matrix, "md").splitlines()
    assert table[0].endswith("| parent | needs |") and table[-1].endswith(f"| {parents[-1]} | ok |")
    summary = printed(matrix, "summary")
    assert f"(waits for {parents[-1]})" in summary
    assert "2  for the one with gpus 2 to be ok: a 4-GPU run only makes sense" in summary
    assert "2  for the one with gpus 1 to end, however" in summary


def test_only_narrows_what_is_shown_not_who_waits(tmp_path: Path) -> None:
    where = {"gpus": 1, "precision": "bf16"}
    matrix = written(tmp_path, depends=CHAIN, exclude=[{"where": where, "because": "not asked"}])
    every = {cell["cell_id"]: cell for cell in json.loads(printed(matrix, "json"))["cells"]}
    some = json.loads(printed(matrix, "json", "gpus=4"))["cells"]
    assert [every[cell["cell_id"]] for cell in some] == some
    assert [cell["outcome"] for cell in some] == ["pending", "incompatible"]


VALUES: dict[str, list[Any]] = {
    "gpus": [1, 2, 4], "precision": ["fp32", "bf16"], "padding": ["dynamic", "max"], "micro_batch_size": [4, 8]
}  # fmt: skip
WHERE = st.dictionaries(st.sampled_from(list(VALUES)), st.integers(0, 2), min_size=1, max_size=2).map(
    lambda chosen: {axis: VALUES[axis][place % len(VALUES[axis])] for axis, place in chosen.items()}
)


@settings(max_examples=150)
@given(
    depends=st.lists(st.fixed_dictionaries({"where": WHERE, "parent": WHERE}), min_size=1, max_size=3),
    exclude=st.lists(WHERE, max_size=1),
    drills=st.lists(WHERE, max_size=1),
    zipped=st.booleans(),
    include=st.booleans(),
)
@example(  # a way into a circle
    depends=[{"where": {"gpus": one}, "parent": {"gpus": other}} for one, other in ((4, 2), (2, 1), (1, 2))],
    exclude=[],
    drills=[],
    zipped=False,
    include=False,
)
def test_agrees_with_every_point_asked_alone(
    tmp_path_factory: pytest.TempPathFactory,
    depends: list[dict[str, Any]],
    exclude: list[dict[str, Any]],
    drills: list[dict[str, Any]],
    zipped: bool,
    include: bool,
) -> None:
    folder = tmp_path_factory.mktemp("m")
    axes = {name: values for name, values in VALUES.items() if not (zipped and name in ("gpus", "padding"))}
    changes: dict[str, Any] = {
        "axes": {"strategy": ["ddp"], **axes},
        "zip": [{"gpus": [1, 2, 4], "padding": ["max", "max", "dynamic"]}] if zipped else [],
        "include": [{"strategy": "ddp", "gpus": 2, "padding": "dynamic", "micro_batch_size": 4}] if include else [],
        "exclude": [{"where": where, "because": "x"} for where in exclude],
        "drills": [{"where": where, "kind": "oom"} for where in drills],
    }
    plain = planned_or_none(folder, changes)
    if plain is None:
        return  # a selection of nothing
    wanted = parents_one_by_one(plain, depends)
    found = planned_or_none(folder, {**changes, "depends": depends})
    assert (found is None) == (wanted is None)
    if found is None or wanted is None:
        return
    because = {cell.cell_id: cell.because for cell in plain.cells}
    for cell in found.cells:
        assert cell.parent == wanted.get(cell.cell_id)
        root: str | None = cell.cell_id
        above: list[str] = []
        while root is not None:
            above.append(because[root])
            root = wanted.get(root)
        assert (cell.outcome == "incompatible") == any(above)
        assert cell.because.endswith(next((reason for reason in above if reason), ""))


def planned_or_none(folder: Path, changes: dict[str, Any]) -> Sweep | None:
    try:
        return planned(folder, **changes)
    except InvalidInput:
        return None


def parents_one_by_one(sweep: Sweep, depends: list[dict[str, Any]]) -> dict[str, str] | None:
    """Return cell -> parent, the slow and plain way; None where a dependency cannot be meant."""
    ids = {tuple(cell.axes.items()): cell.cell_id for cell in sweep.cells}
    found: dict[str, str] = {}
    for entry in depends:
        chosen = [c for c in sweep.cells if all(c.axes[name] == value for name, value in entry["where"].items())]
        for cell in chosen:
            parent = ids.get(tuple({**cell.axes, **entry["parent"]}.items()))
            if parent is None or parent == cell.cell_id or found.setdefault(cell.cell_id, parent) != parent:
                return None
        if not chosen:
            return None
    for start in found:
        seen, at = {start}, start
        while at in found:
            at = found[at]
            if at in seen:  # a circle, which need not begin where we did
                return None
            seen.add(at)
    return found


def test_the_parents_ids_are_the_plain_ones(tmp_path: Path) -> None:
    sweep = planned(tmp_path, depends=CHAIN)
    for cell in sweep.cells:
        if cell.parent is not None:
            axes = {**cell.axes, "gpus": cell.axes["gpus"] // 2}
            assert cell.parent == cell_id_of(axes, sweep.workloads["w"])
            assert first_reason(axes, sweep.site, sweep.workloads["w"]) == ""


def test_many_points_that_wait_cost_little(tmp_path: Path) -> None:
    axes = {"gpus": [1, 2, 4], "micro_batch_size": list(range(1, 41)), "num_steps": list(range(1, 401))}
    expansion = expand(load_matrix(written(tmp_path, axes={"strategy": ["ddp"], **axes}, depends=CHAIN)))
    assert sum(expansion.counts().values()) == 48_000
    assert sum(bool(cell[3]) for cell in expansion.cells()) == 32_000


def test_the_documented_example_does_what_it_says(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    text = (root / "docs" / "matrix.md").read_text()
    (tmp_path / "benchmarks").symlink_to(root / "benchmarks")
    (tmp_path / "m.yaml").write_text(text.split("### Cells that wait for others\n```yaml\n")[1].split("```")[0])
    sweep = plan(load_matrix(tmp_path / "m.yaml"))
    assert [(cell.axes["gpus"], cell.outcome) for cell in sweep.cells] == [(4, "pending"), (8, "pending")] * 2
    for small, large in zip(sweep.cells[::2], sweep.cells[1::2], strict=True):
        assert (small.parent, large.parent, large.needs) == (None, small.cell_id, "ok")
