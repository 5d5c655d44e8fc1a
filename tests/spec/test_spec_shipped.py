"""Every YAML in the repository is valid, says why it exists, and fits the committed schemas."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from egobench.data.formats import READERS
from egobench.plan.command import validate
from egobench.plan.expand import plan
from egobench.records.trial import Drill
from egobench.spec.axes import MAX
from egobench.spec.command import kind_of
from egobench.spec.layout import PlacedDrill
from egobench.spec.matrix import load_matrix
from egobench.spec.schema import FOLDER, MODELS, schema_text
from egobench.spec.workload import DATA_FORMATS

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "matrix.yaml", *sorted(ROOT.glob("benchmarks/*.yaml")), *sorted(ROOT.glob("slurm_templates/*.yaml"))]


def schema(which: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{which}.schema.json").read_text())
    return found


def complaints(which: str, document: dict[str, Any]) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    return [error.message for error in jsonschema.Draft202012Validator(schema(which)).iter_errors(document)]


@pytest.mark.parametrize("which", MODELS)
def test_schemas_are_fresh(which: str) -> None:
    """If this fails: python -c 'from egobench.spec.schema import write_schemas; write_schemas()'."""
    assert (FOLDER / f"{which}.schema.json").read_text() == schema_text(which)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_file(path: Path) -> None:
    assert validate([path]) == 0
    kind = kind_of(path)
    first = path.read_text().splitlines()[0]
    _, _, relative = first.partition("# yaml-language-server: $schema=")
    assert (path.parent / relative).resolve() == FOLDER / f"{kind}.schema.json"
    document = yaml.safe_load(path.read_text())
    assert document["why"].rstrip().endswith((".", "?"))
    assert complaints(kind, document) == []


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("matrix.yaml", "strategy: [fsdp, ddp", "strategy: [fsdp, dpp"),
        ("matrix.yaml", "axes:", "axis:"),
        ("matrix.yaml", "gpus: [4, 8]", "gpus: [4, 0]"),
        ("matrix.yaml", "because: tf32", "becuase: tf32"),
        ("matrix.yaml", "  attention: eager", "  attnetion: eager"),
        ("benchmarks/egotiny-workshop.yaml", "name: egotiny", "name: egotinny"),
        ("benchmarks/egotiny-workshop.yaml", "micro_batch_size", "micro_batchsize"),
        ("benchmarks/gpu_suite.yaml", "name: internvl3-2b,", "name: internvl3-2c,"),
        ("slurm_templates/a100-80gb-8.yaml", "A100-80GB SXM\n", "A100\n"),
    ],
)
def test_schemas_see_mistakes(file: str, old: str, new: str) -> None:
    text = (ROOT / file).read_text()
    assert old in text
    assert complaints(kind_of(ROOT / file), yaml.safe_load(text.replace(old, new)))


def test_quickstart_is_a_quick_start() -> None:
    sweep = plan(load_matrix(ROOT / "benchmarks" / "quickstart.yaml"))
    assert len(sweep.runnable()) >= 12
    assert sweep.trials >= 3
    assert list(sweep.baselines) == list(sweep.workloads)
    axes = [cell.axes for cell in sweep.cells]
    assert {one["gpus"] for one in axes} == {1, 2}
    assert len({one["gpus"] * one["micro_batch_size"] * one["num_accumulation_steps"] for one in axes}) == 1


def test_headline_keeps_the_global_batch() -> None:
    sweep = plan(load_matrix(ROOT / "matrix.yaml"))
    assert list(sweep.baselines) == ["internvl3-2b-egoqa", "internvl3-8b-egoqa"]
    for name in sweep.workloads:
        cells = [cell.axes for cell in sweep.cells if cell.axes["workload"] == name]
        axes = [one for one in cells if one["micro_batch_size"] != MAX]
        assert len(axes) == len(cells) - 1
        assert len({one["gpus"] * one["micro_batch_size"] * one["num_accumulation_steps"] for one in axes}) == 1


def test_a_placed_drill_is_a_drill() -> None:
    assert set(PlacedDrill.model_fields) == {*Drill.model_fields, "where"}


def test_data_formats_are_those_that_can_be_read() -> None:
    assert set(DATA_FORMATS) == {"egoworld", *READERS} and len(set(DATA_FORMATS)) == len(DATA_FORMATS)
