"""Variants in a runtime that a site sets up apart: jobs of their own, in the runtime's container."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from test_slurm_script import bash_says, golden

from egobench.errors import InvalidInput
from egobench.launch.dry_run import dry_run_document, print_dry_run
from egobench.launch.prepare import dry_packing
from egobench.launch.sweep import Wish, look_up
from egobench.spec.pieces import load_site

SITE = """
why: A GPU cluster whose TensorRT-LLM lies in NVIDIA's image.
launcher: slurm
device: cuda
gpu: H100-80GB SXM
gpus_per_node: 4
modules: [cuda/12.8]
environment: {A: site, B: site}
setup: [ulimit -n 8192]
expected_trial_min: 5
trial_time_limit_s: 600
runtimes:
  tensorrt_llm:
    environment: {B: runtime}
    setup: ["export TRTLLM_LOG=warning"]
    python: /usr/bin/python3
    container: {kind: pyxis, image: "nvcr.io#nvidia/tensorrt-llm/release:1.0.0"}
  vllm: {setup: [". /shared/vllm/bin/activate"], python: /shared/vllm/bin/python}
"""
MATRIX = """
name: deployed
why: Which runtime answers fastest?
site: cluster
workloads:
  tiny:
    why: A tiny VLM.
    model: {name: egotiny}
    data: {format: egoworld, domain: workshop, num_train: 16, num_validation: 8}
    recipe: {num_steps: 2, learning_rate: 1.0e-4, max_length: 96}
    image_px: 64
axes: {workload: [tiny], precision: [bf16]}
trials: 2
variants:
  - {name: torch, kind: as_trained}
  - {name: trt, kind: as_trained, runtime: tensorrt_llm}
  - {name: served, kind: fp8, runtime: vllm}
"""


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Any, Any]:
    (tmp_path / "slurm_templates").mkdir()
    (tmp_path / "slurm_templates" / "cluster.yaml").write_text(SITE)
    (tmp_path / "deployed.yaml").write_text(MATRIX)
    todo = look_up(tmp_path / "deployed.yaml", tmp_path / "runs", Wish())
    return todo, dry_packing(todo, Wish())


def test_trials_of_a_runtime_are_jobs_of_their_own_after_their_parents(planned: tuple[Any, Any]) -> None:
    todo, packing = planned
    document = dry_run_document(packing, todo.sweep, todo.paths)
    held = {one["runtime"]: [ref["cell_id"] for draft in one["trials"] for ref in draft] for one in document["arrays"]}
    assert {runtime: len(cells) for runtime, cells in held.items()} == {None: 4, "tensorrt_llm": 2, "vllm": 2}
    assert all("-trt-" in cell for cell in held["tensorrt_llm"])
    waiting = [one for one in document["arrays"] if one["runtime"]]
    assert all(one["after_arrays"] == [0] for one in waiting) and document["arrays"][0]["runtime"] is None
    for one in document["arrays"]:
        is_in_image = "--container-image=" in one["script"]
        assert bash_says(one["script"]) == "" and is_in_image == (one["runtime"] == "tensorrt_llm")


def test_the_dry_run_shows_the_script_to_the_letter(planned: tuple[Any, Any], tmp_path: Path) -> None:
    todo, packing = planned
    stream = io.StringIO()
    print_dry_run(packing, todo.sweep, todo.paths, stream)
    text = stream.getvalue()
    [script] = [one for one in re.split("(?m)^(?=# array )", text) if "set up for tensorrt_llm" in one]
    script = script[: script.index("# arrays:")] if "# arrays:" in script else script
    script = re.sub(r"(?<=code/)[0-9a-f]+", "CODE", script.replace(str(tmp_path.resolve()), "/shared/sweeps"))
    golden("runtime-trt-llm", script)


def test_what_a_runtime_adds_stands_behind_what_the_site_says(planned: tuple[Any, Any]) -> None:
    site = planned[0].sweep.site
    own = site.set_up_for("tensorrt_llm")
    assert own.setup == ("ulimit -n 8192", "export TRTLLM_LOG=warning") and own.modules == site.modules
    assert own.environment == {"A": "site", "B": "runtime"} and own.python == "/usr/bin/python3"
    assert site.set_up_for("") is site is site.set_up_for("openvino")


def test_mistakes_in_a_runtime_are_told_at_their_place(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    text = SITE.replace("B: runtime", "1B: x").replace("    python: /usr/bin/python3\n", "")
    file.write_text(text.replace(r"export TRTLLM_LOG=warning", r"export A=1\nrm -r x"))
    with pytest.raises(InvalidInput) as told:
        load_site(file)
    said = str(told.value)
    assert "runtimes.tensorrt_llm.environment" in said and "cannot be a variable" in said
    assert "runtimes.tensorrt_llm.setup[0]: more than one line" in said
    file.write_text(SITE.replace("  vllm:", "  vlm:"))
    with pytest.raises(InvalidInput, match="did you mean 'vllm'"):
        load_site(file)
    file.write_text(SITE.replace("    python: /usr/bin/python3\n", ""))
    with pytest.raises(InvalidInput, match=r"runtimes\.tensorrt_llm\.container: 'python' is missing"):
        load_site(file)
