"""docs/axes.md says what the code says: every value has a row, every test that a row names exists and covers it."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from egobench.plan.axes_page import PAGE, page, runs_on, seen_on_gpus, version_of
from egobench.spec.axes import AXES
from egobench.spec.axis_facts import FACTS, OTHERS, THIN, AxisFact

ROOT = Path(__file__).parents[2]
ROWS = [(axis, value, fact) for axis, facts in FACTS.items() for value, fact in facts.items()]
each_row = pytest.mark.parametrize(("axis", "value", "fact"), ROWS, ids=lambda part: part if type(part) is str else "")
OF_THE_TOWER = {"vision_attention", "vision_checkpointing"}


def test_the_page_is_fresh() -> None:
    """If this fails: python -m egobench.plan.axes_page --write."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_value_has_a_row() -> None:
    named = {name: list(axis.table) for name, axis in AXES.items() if axis.table is not None}
    assert {name: list(facts) for name, facts in FACTS.items()} == {
        name: values for name, values in named.items() if name not in OF_THE_TOWER
    }
    text = page()
    assert all(f"| `{name}` |" in text or f"## `{name}`" in text for name in AXES)


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@each_row
def test_every_named_test_exists(axis: str, value: str, fact: AxisFact) -> None:
    for test in fact.shown_by:
        file, _, name = test.partition("::")
        assert name in functions_of(file), test
    for library in fact.libraries:
        assert version_of(library)


@each_row
def test_what_a_cpu_can_run_is_shown_on_a_cpu(axis: str, value: str, fact: AxisFact) -> None:
    if "CPU" in runs_on(axis, value, fact):
        assert any(not test.startswith("train/test_on_gpu.py") for test in fact.shown_by)


@cache
def points_of_parity() -> dict[str, list[dict[str, Any]]]:
    sys.path.insert(0, str(ROOT / "tests" / "train"))
    try:
        matrix = importlib.import_module("test_parity_matrix")
    finally:
        sys.path.remove(str(ROOT / "tests" / "train"))
    defaults = {name: axis.default for name, axis in AXES.items()}
    return {
        THIN: [defaults | dict(point) for point in [*matrix.thin(), *matrix.of_four()]],
        OTHERS: [defaults | dict(point) for point in matrix.others()],
    }


@each_row
def test_parity_is_claimed_only_where_it_is_tested(axis: str, value: str, fact: AxisFact) -> None:
    for test in {THIN, OTHERS} & set(fact.shown_by):
        assert any(point[axis] == value for point in points_of_parity()[test]), test


@pytest.mark.parametrize(
    ("axis", "value", "places"),
    [
        ("attention", "flash_attention_3", "GPU 9.0"),
        ("precision", "fp8", "GPU 8.9"),
        ("loss", "fused_linear", "GPU"),
        ("strategy", "fsdp", "CPU, GPU"),
        ("attention", "sdpa_flash", "CPU, GPU 8.0"),
    ],
)
def test_where_it_runs_follows_from_the_rules(axis: str, value: str, places: str) -> None:
    assert runs_on(axis, value, FACTS[axis][value]) == places


def test_a_gpu_is_named_only_where_a_trial_was_ok_on_one(tmp_path: Path) -> None:
    folder = tmp_path / "h200" / "suite"
    shutil.copytree(ROOT / "results" / "cpu-amd-epyc" / "quickstart", folder)
    assert seen_on_gpus(tmp_path) == {} and "h200/suite" not in page(tmp_path)
    document = json.loads((folder / "provenance.json").read_text())
    for one in document["provenances"]:
        one["gpus"] = [{"name": "NVIDIA H200"}]
    (folder / "provenance.json").write_text(json.dumps(document))
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for line in lines:
        if line["axes"]["attention"] == "eager":
            line["outcome"] = "oom"
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen = seen_on_gpus(tmp_path)
    assert seen["attention", "sdpa"] == ["h200/suite"] and ("attention", "eager") not in seen
    rows = [line for line in page(tmp_path).splitlines() if "](../results/h200/suite/table.md)" in line]
    assert any(row.startswith("| `sdpa` |") for row in rows) and not any("| `eager` |" in row for row in rows)
