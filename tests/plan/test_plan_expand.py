"""From a matrix to cells: which points, in which order, with which ids, counted how."""

import copy
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from egobench.errors import InvalidInput
from egobench.plan.cells import expand
from egobench.plan.expand import plan, to_cell
from egobench.plan.identity import cell_id_of
from egobench.plan.rules import first_reason
from egobench.records.outcome import OUTCOMES
from egobench.records.sweep import Sweep, count_outcomes
from egobench.spec.axes import AXES
from egobench.spec.matrix import load_matrix

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
    "axes": {"precision": ["fp32", "bf16"], "attention": ["eager", "sdpa"]},
    "zip": [{"strategy": ["single", "ddp"], "gpus": [1, 2], "num_accumulation_steps": [2, 1]}],
}


def planned(folder: Path, **changes: Any) -> Sweep:
    return plan(load_matrix(written(folder, **changes)))


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump({**MATRIX, **changes}, sort_keys=False))
    return path


def workload(**changes: Any) -> dict[str, Any]:
    return {"w": {**WORKLOAD, **changes}}


def one_id(folder: Path, **changes: Any) -> str:
    (cell,) = planned(folder, **{"axes": {"gpus": [1]}, "zip": [], **changes}).cells
    return cell.cell_id


def test_crossed_and_moved_together_in_the_order_written(tmp_path: Path) -> None:
    sweep = planned(tmp_path)
    names = ("precision", "attention", "strategy", "gpus", "num_accumulation_steps")
    assert [tuple(cell.axes[name] for name in names) for cell in sweep.cells] == [
        (precision, attention, *row)
        for precision, attention, row in itertools.product(
            ("fp32", "bf16"), ("eager", "sdpa"), (("single", 1, 2), ("ddp", 2, 1))
        )
    ]
    assert sweep.varied == names
    assert tuple(sweep.cells[0].axes) == tuple(AXES)
    assert {cell.outcome for cell in sweep.cells} == {"pending"}
    first = sweep.cells[0]
    assert first.cell_id.startswith("w-single-1gpu-fp32-eager-nockpt-full-")
    assert Sweep.model_validate_json(sweep.model_dump_json()) == sweep


def test_bulk_ids_are_the_plain_ones(tmp_path: Path) -> None:
    drill = {"where": {"precision": "bf16", "gpus": 2}, "kind": "oom", "rank": 1, "step": 3}
    sweep = planned(tmp_path, drills=[drill], include=[{"num_steps": 3, "padding": "max"}])
    assert len(sweep.cells) == 9
    for cell in sweep.cells:
        assert cell.cell_id == cell_id_of(cell.axes, sweep.workloads["w"], cell.drill)
    drilled = [cell for cell in sweep.cells if cell.drill is not None]
    assert [cell.axes["precision"] for cell in drilled] == ["bf16", "bf16"]
    assert drilled[0].drill is not None and drilled[0].drill.rank == 1


def test_an_id_that_must_not_change() -> None:
    """Ids are kept in result folders: whoever changes this one makes all of them stale."""
    from egobench.spec.workload import Workload

    axes = {name: axis.default for name, axis in AXES.items()}
    axes |= {"workload": "w", "learning_rate": 1e-3, "num_steps": 10, "image_px": 64, "max_length": 96}
    assert cell_id_of(axes, Workload.model_validate(WORKLOAD)) == "w-single-1gpu-fp32-sdpa-nockpt-full-6a7044f32840"


def test_defaults_from_the_workload_and_the_matrix(tmp_path: Path) -> None:
    sweep = planned(tmp_path, workloads=workload(defaults={"micro_batch_size": 3, "padding": "max"}))
    assert {cell.axes["micro_batch_size"] for cell in sweep.cells} == {3}
    sweep = planned(
        tmp_path,
        workloads=workload(defaults={"micro_batch_size": 3}),
        axes={"micro_batch_size": [5], "num_steps": [7], "learning_rate": [1]},
    )
    assert {cell.axes["micro_batch_size"] for cell in sweep.cells} == {5}
    cell = to_cell(sweep, sweep.cells[0])
    assert (cell.workload.recipe.num_steps, cell.workload.recipe.learning_rate) == (7, 1.0)
    assert (cell.workload.image_px, cell.workload.recipe.max_length) == (64, 96)


@pytest.mark.parametrize(
    "changes",
    [
        {"workloads": workload(why="other words")},
        {"workloads": workload(evaluation={"batch_size": 32})},
        {"workloads": workload(data={**WORKLOAD["data"], "split_seed": 0})},
        {"workloads": workload(recipe={**WORKLOAD["recipe"], "betas": [0.9, 0.999]})},
        {"workloads": {"w": dict(reversed(WORKLOAD.items()))}},
        {"axes": {"gpus": [1], "attention": ["sdpa"], "padding": ["dynamic"]}},
        {"axes": {"padding": ["dynamic"], "gpus": [1]}},
        {"axes": {}, "zip": [{"gpus": [1], "precision": ["fp32"]}]},
        {"axes": {}, "include": [{"gpus": 1}]},
        {"axes": {"learning_rate": [0.001], "num_steps": [10], "image_px": [64], "max_length": [96]}},
        {"workloads": workload(recipe={**WORKLOAD["recipe"], "num_steps": 99}), "axes": {"num_steps": [10]}},
        {"workloads": workload(defaults={"padding": "dynamic"})},
        {"name": "other", "why": "other", "trials": 4},
    ],
)
def test_same_cell_same_id(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert one_id(tmp_path, **changes) == one_id(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"workloads": workload(evaluation={"num_questions": 3})},
        {"workloads": workload(image_px=128)},
        {"workloads": workload(data={**WORKLOAD["data"], "split_seed": 1})},
        {"workloads": workload(recipe={**WORKLOAD["recipe"], "seed": 1})},
        {"workloads": workload(recipe={**WORKLOAD["recipe"], "num_steps": 11})},
        {"workloads": workload(model={"name": "egotiny", "weights": "random"})},
        {"axes": {"learning_rate": [0.002]}},
        {"axes": {"micro_batch_size": [4]}},
        {"axes": {"loss": ["chunked"]}},
        {"drills": [{"where": {"gpus": 1}, "kind": "oom"}]},
    ],
)
def test_another_cell_another_id(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert one_id(tmp_path, **changes) != one_id(tmp_path)


def shuffled(data: Any, order: Any) -> Any:
    if not isinstance(data, dict):
        return data
    keys = order.draw(st.permutations(list(data)))
    return {key: shuffled(data[key], order) for key in keys}


@settings(max_examples=15)
@given(order=st.data())
def test_the_order_of_keys_never_counts(tmp_path_factory: pytest.TempPathFactory, order: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("order")
    plain = {cell.cell_id for cell in planned(folder).cells}
    (folder / "matrix.yaml").write_text(yaml.safe_dump(shuffled(MATRIX, order), sort_keys=False))
    assert {cell.cell_id for cell in plan(load_matrix(folder / "matrix.yaml")).cells} == plain


SOME = {
    name: list(AXES[name].table or ())
    for name in ("strategy", "precision", "attention", "checkpointing", "method", "optimizer", "loss", "compile")
}


@settings(max_examples=20)
@given(
    axes=st.fixed_dictionaries(
        {"gpus": st.lists(st.integers(1, 20), min_size=1, max_size=3, unique=True)},
        optional={
            name: st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)
            for name, values in SOME.items()
        },
    ),
    include=st.lists(
        st.fixed_dictionaries({}, optional={name: st.sampled_from(v) for name, v in SOME.items()}), max_size=4
    ),
)
def test_the_ledger_sums_and_agrees_with_every_point(
    tmp_path_factory: pytest.TempPathFactory, axes: dict[str, Any], include: list[dict[str, Any]]
) -> None:
    path = written(
        tmp_path_factory.mktemp("ledger"),
        axes=axes,
        zip=[{"padding": ["max", "dynamic"], "num_steps": [1, 2]}],
        include=include,
    )
    expansion = expand(load_matrix(path))
    sweep = plan(load_matrix(path))
    product = 2
    for values in axes.values():
        product *= len(values)
    ids = [cell.cell_id for cell in sweep.cells]
    assert len(set(ids)) == len(ids)
    assert product <= len(ids) <= product + len(include)
    ledger = count_outcomes(cell.outcome for cell in sweep.cells)
    assert ledger["planned"] == sum(ledger[name] for name in OUTCOMES) == len(ids)
    counts = expansion.counts()
    assert counts == Counter(cell[2] for cell in expansion.cells())
    assert sum(count for mark, count in counts.items() if not mark.because) == ledger["pending"]
    for cell in sweep.cells:
        assert cell.because == first_reason(cell.axes, sweep.site, sweep.workloads["w"])


def test_dropped_points_keep_their_reason_and_line(tmp_path: Path) -> None:
    exclude = [{"where": {"precision": "bf16", "attention": ["eager"]}, "because": "not asked"}]
    sweep = planned(tmp_path, exclude=exclude, axes={**MATRIX["axes"], "loss": ["plain", "fused_linear"]})
    line = 1 + (tmp_path / "matrix.yaml").read_text().split("\n").index("- where:")
    because = Counter(cell.because for cell in sweep.cells)
    assert because == {
        "": 6,
        f"excluded at matrix.yaml:{line}: not asked": 4,
        "fused_loss_on_gpu: the fused linear loss is a Triton kernel and needs a CUDA GPU "
        "(https://github.com/linkedin/Liger-Kernel)": 6,
    }
    assert all((cell.outcome == "incompatible") == bool(cell.because) for cell in sweep.cells)
    assert len(sweep.runnable()) == 6


def test_an_included_point_of_the_product_is_planned_once(tmp_path: Path) -> None:
    again = {"precision": "bf16", "attention": "eager", "strategy": "ddp", "gpus": 2}
    sweep = planned(tmp_path, include=[again, {"padding": "max"}, {"padding": "max"}])
    assert len(sweep.cells) == 9
    assert sweep.cells[-1].axes["padding"] == "max"
    assert sweep.varied[-1] == "padding"


def test_baseline(tmp_path: Path) -> None:
    sweep = planned(tmp_path, baseline={"gpus": 1, "precision": "fp32", "attention": "eager"})
    assert sweep.baselines == {"w": sweep.cells[0].cell_id}
    assert {sweep.baseline_of(cell.axes) for cell in sweep.cells} == {sweep.cells[0].cell_id}


TWO: dict[str, Any] = {
    "workloads": {"v": copy.deepcopy(WORKLOAD), "w": WORKLOAD},
    "axes": {"workload": ["v", "w"], "precision": ["fp32", "bf16"]},
}


def test_one_baseline_per_workload(tmp_path: Path) -> None:
    sweep = planned(tmp_path, **TWO, baseline={"gpus": 1, "precision": "fp32"})
    assert list(sweep.baselines) == ["v", "w"]
    for cell in sweep.cells:
        (own,) = (one for one in sweep.cells if one.cell_id == sweep.baseline_of(cell.axes))
        assert own.axes == {**cell.axes, "gpus": 1, "strategy": "single", "num_accumulation_steps": 2,
                            "precision": "fp32"}  # fmt: skip


def test_a_workload_that_the_baseline_does_not_select_is_not_compared(tmp_path: Path) -> None:
    sweep = planned(tmp_path, **TWO, baseline={"workload": "w", "gpus": 1, "precision": "fp32"})
    assert list(sweep.baselines) == ["w"]
    assert sweep.baseline_of({"workload": "v"}) is None
    assert planned(tmp_path, **TWO).baselines == {}


def test_every_workload_without_its_one_cell_is_a_mistake(tmp_path: Path) -> None:
    axes = {**TWO["axes"], "method": ["full", "lora"]}
    exclude = [{"where": {"workload": "v", "method": "full", "gpus": 1}, "because": "not asked"}]
    baseline = {"gpus": 1, "method": "full"}
    with pytest.raises(InvalidInput) as caught:
        planned(tmp_path, **{**TWO, "axes": axes}, exclude=exclude, baseline=baseline)
    assert [mistake.what for mistake in caught.value.mistakes] == [
        "selects only cells of workload 'v' that cannot run",
        "selects more than one cell of workload 'w'",
    ]


def test_what_the_matrix_zips_is_recorded(tmp_path: Path) -> None:
    assert planned(tmp_path).zipped == (("strategy", "gpus", "num_accumulation_steps"),)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"baseline": {"gpus": 1}},
            "baseline: selects more than one cell of workload 'w'; exactly one cell that runs per workload; name more",
        ),
        (
            {"baseline": {"gpus": 4}},
            "baseline: selects no cell; exactly one cell that runs per workload; there are gpus 1, 2",
        ),
        (
            {"baseline": {"loss": "fused_linear"}, "include": [{"loss": "fused_linear"}]},
            "baseline: selects only cells of workload 'w' that cannot run; exactly one cell that runs per workload; "
            "the first one: fused_loss_on_gpu",
        ),
        ({"exclude": [{"where": {"gpus": 4}, "because": "x"}]}, "exclude[0].where: selects no point of this matrix"),
        ({"drills": [{"where": {"gpus": 4}, "kind": "oom"}]}, "drills[0].where: selects no point of this matrix"),
        (
            {"variants": [{"name": "awq", "kind": "awq", "where": {"gpus": 4}}]},
            "variants[0].where: selects no point of this matrix",
        ),
        (
            {"drills": [{"where": {"gpus": 2}, "kind": "oom"}, {"where": {"precision": "bf16"}, "kind": "nan"}]},
            "drills[1]: selects cells that drills[0] also selects",
        ),
    ],
)
def test_selections_that_cannot_be_meant(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        planned(tmp_path, **changes)
    assert words in str(caught.value)
    assert len(caught.value.mistakes) == 1


def test_variants_are_cells_behind_the_others(tmp_path: Path) -> None:
    awq = {"name": "awq", "kind": "awq", "where": {"precision": "bf16", "gpus": 1}}
    served_too = {"name": "served", "kind": "awq", "runtime": "vllm", "where": {"precision": "bf16", "gpus": 1}}
    sweep = planned(tmp_path, variants=[awq, served_too])
    made, served = sweep.cells[8:10], sweep.cells[10:]
    assert [cell.outcome for cell in made] == ["pending"] * 2
    assert all("-full-awq-" in cell.cell_id and cell.axes["variant"] == "awq" for cell in made)
    assert {cell.because for cell in served} == {
        "gpu_runtimes: vllm needs a CUDA GPU (https://docs.vllm.ai, https://nvidia.github.io/TensorRT-LLM)"
    }


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ([{"name": "a", "kind": "int8"}, {"name": "a", "kind": "awq"}], "variants[1].name: 'a' stands twice"),
        (
            [{"name": "a", "kind": "int8"}, {"name": "b", "kind": "awq", "of": "a"}],
            "variants[1].of: 'a' is no variant that others can be made from; allowed: none",
        ),
        ([{"name": "a", "kind": "int8", "of": "nobody"}], "variants[0].of: 'nobody' is no variant"),
        ([{"name": "a", "kind": "distilled"}], "kind distilled goes with distillation:"),
        (
            [{"name": "a", "kind": "int8", "distillation": {"student": {"layers": 1}}}],
            "kind distilled goes with distillation:",
        ),
        ([{"name": "a", "kind": "int8", "runtime": "onxruntime"}], "did you mean 'onnxruntime'?"),
    ],
)
def test_variants_that_cannot_be_meant(tmp_path: Path, variants: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        planned(tmp_path, variants=variants)
    assert words in str(caught.value)


def test_targets_of_variants_need_the_unchanged_model(tmp_path: Path) -> None:
    int8 = {"name": "int8", "kind": "int8"}
    targets = {"variants": {"size": {"at_most": 0.5}}}
    with pytest.raises(InvalidInput, match="no variant is that"):
        planned(tmp_path, variants=[int8], targets=targets)
    assert planned(tmp_path, variants=[int8, {"name": "torch", "kind": "as_trained"}], targets=targets)


@pytest.mark.slow
def test_many_points_cost_little(tmp_path: Path) -> None:
    axes = {name: list(axis.table) for name, axis in AXES.items() if axis.table and name not in ("loss", "method")}
    path = written(tmp_path, axes={**axes, "gpus": [1, 2, 4]}, zip=[])
    expansion = expand(load_matrix(path))
    counts = expansion.counts()
    total = 1
    for values in axes.values():
        total *= len(values)
    assert sum(counts.values()) == 3 * total > 100_000
    wanted = 50_000
    ids = {cell[0] for cell in itertools.islice(expansion.cells(), wanted)}
    assert len(ids) == wanted


def test_json_members_are_sorted_json(tmp_path: Path) -> None:
    for cell_id, members, _, _ in expand(load_matrix(written(tmp_path))).cells():
        axes = json.loads(f"{{{members}}}")
        assert json.dumps(axes, sort_keys=True, separators=(",", ":")) == f"{{{members}}}"
        assert cell_id
