"""What becomes of variants whose input is no good: a real sweep, in which every bad input is an outcome of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from egobench.models.internvl import EGOTINY
from egobench.report.collect import collect
from egobench.report.markdown import markdown_page
from egobench.report.page import html_page
from egobench.report.scrub import scrub_rows

TRAINED = """
name: bad
why: What becomes of variants whose input is no good?
workloads:
  tiny:
    why: Twelve plain pictures.
    model: {name: egotiny}
    data: {format: egobench, path: tiny.jsonl}
    recipe: {num_steps: 1, learning_rate: 1.0e-4, max_length: 96}
    evaluation: {num_questions: 0}
    image_px: 64
    defaults: {micro_batch_size: 2}
axes: {workload: [tiny, blind], attention: [sdpa, eager]}
drills:
  - {where: {workload: tiny, attention: eager}, kind: raise, rank: 0, step: 0, phase: backward}
save: {export: merged}
"""
VARIANTS = """
variants:
  - {name: orphan, kind: as_trained, where: {workload: tiny, attention: eager}}
  - {name: stranger, kind: distilled, where: {workload: tiny, attention: sdpa},
     distillation: {student: {path: stranger}}}
  - {name: grandchild, kind: int8, of: stranger, where: {workload: tiny, attention: sdpa}}
  - {name: unseen, kind: fp8_static, where: {workload: blind, attention: sdpa},
     quantization: {calibration: {num_samples: 2}}}
  - {name: cut, kind: int8, where: {workload: blind, attention: eager}}
"""

pytestmark = pytest.mark.slow  # a sweep of nine trials


def with_two_workloads(matrix: str) -> str:
    """Give the matrix a second workload, which only reads other data."""
    head, rest = matrix.split("  tiny:\n")
    body, axes = rest.split("axes:")
    return f"{head}  tiny:\n{body}  blind:\n{body.replace('tiny.jsonl', 'blind.jsonl')}axes:{axes}"


def write_data(path: Path, *, has_pictures: bool) -> None:
    lines = []
    for number in range(12):
        name = f"{number}.png"
        Image.new("RGB", (64, 64), (20 * number, 90, 200)).save(path.parent / name)
        media = {"type": "image", "paths": [name] if has_pictures else []}
        record = {"id": str(number), "media": media, "question": "which colour is it?", "answers": ["blue"]}
        lines.append(json.dumps(record) + "\n")
    path.write_text("".join(lines))


def write_stranger(folder: Path) -> None:
    """Write a student that has as many tokens as its teacher, two of which stand for one another."""
    shutil.copytree(EGOTINY, folder)
    path = folder / "tokenizer.json"
    told: dict[str, Any] = json.loads(path.read_text())
    words = told["model"]["vocab"]
    one, other = sorted(words, key=lambda word: int(words[word]))[-2:]
    words[one], words[other] = words[other], words[one]
    path.write_text(json.dumps(told))


def sweep(matrix: Path, runs: Path) -> tuple[int, dict[str, Any]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "HF_"))}
    command = [sys.executable, "-m", "egobench", "sweep", str(matrix), "--runs", str(runs), "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=170, check=False)
    assert done.stdout, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.returncode, dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], Path]:
    """Train four cells, one of which fails; spoil what the variants are made of; sweep again with variants."""
    folder = tmp_path_factory.mktemp("bad")
    matrix, runs = folder / "bad.yaml", folder / "runs"
    matrix.write_text(with_two_workloads(TRAINED))
    for name in ("tiny", "blind"):
        write_data(folder / f"{name}.jsonl", has_pictures=True)
    assert sweep(matrix, runs)[0] == 3
    write_stranger(folder / "stranger")
    write_data(folder / "blind.jsonl", has_pictures=False)
    [eager] = [path for path in runs.glob("bad/blind-*eager*/0/model/model.safetensors")]
    os.truncate(eager, eager.stat().st_size // 2)
    matrix.write_text(with_two_workloads(TRAINED + VARIANTS))
    code, document = sweep(matrix, runs)
    return code, document, runs / "bad"


def outcome_of(folder: Path, name: str) -> dict[str, Any]:
    found = [json.loads(path.read_text()) for path in folder.glob("*/0/outcome.json")]
    [own] = [one for one in found if f"-{name}-" in one["cell_id"]]
    return dict(own)


CLEAR = {
    "unseen": ("crash", "InvalidInput: ", "blind.jsonl: no usable sample for train (no_image 12); at least one"),
    "stranger": ("crash", "InvalidInput: ", "another vocabulary than its teacher's: 2 tokens differ, first "),
    "cut": ("crash", "InvalidInput: ", "model.safetensors: damaged ("),
    "orphan": ("parent_failed", "tiny-", "which it needs, ended as crash: rank 0, backward, step 0: DrillError: drill"),
    "grandchild": ("parent_failed", "stranger-", "which it needs, ended as crash: rank 0, load: InvalidInput: "),
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", CLEAR)
def test_each_bad_input_is_an_outcome_with_one_clear_error(swept: tuple[int, Any, Path], name: str) -> None:
    found = outcome_of(swept[2], name)
    outcome, *words = CLEAR[name]
    assert found["outcome"] == outcome and found["variant"] is None
    assert "\n" not in found["because"] and all(word in found["because"] for word in words), found["because"]


def test_nothing_is_launched_where_the_parent_failed(swept: tuple[int, Any, Path]) -> None:
    for name in ("orphan", "grandchild"):
        [folder] = swept[2].glob(f"*-{name}-*/0")
        assert not (folder / "log").exists() and not (folder / "model").exists()


def test_the_ledger_sums_and_the_exit_code_says_that_some_failed(swept: tuple[int, Any, Path]) -> None:
    code, document, _ = swept
    ledger = document["ledger"]
    counted = {name: count for name, count in ledger.items() if count}
    assert code == 3 and counted == {"planned": 9, "ok": 3, "crash": 4, "parent_failed": 2}


def test_the_report_names_the_parent_and_its_reason(swept: tuple[int, Any, Path]) -> None:
    rows = scrub_rows(collect(swept[2]))
    page, text = html_page(rows), markdown_page(rows)
    assert rows.ledger["planned"] == sum(count for name, count in rows.ledger.items() if name != "planned") == 9
    [parent] = [cell.cell_id for cell in rows.trained if cell.outcome == "crash"]
    for said in (page, text):
        assert f"{parent} trial 0, which it needs, ended as crash: rank 0, backward, step 0: DrillError" in said
    failures = page[page.index('id="failures"') : page.index("</section>", page.index('id="failures"'))]
    assert failures.count("o-parent_failed") == 2 and "damaged (" in failures and "no usable sample" in failures
