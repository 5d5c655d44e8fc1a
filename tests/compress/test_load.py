"""A folder is loaded as what it is, or refused: never with random numbers in place of what is missing."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import CPU, drawn, egoworld, logits
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from egobench.compress.calibration import CalibrationSet
from egobench.compress.float8 import quantize_fp8
from egobench.compress.integer import quantize_int4, quantize_int8
from egobench.compress.load import held_bytes, load_quantized
from egobench.errors import EnvironmentProblem, InvalidInput
from egobench.models.internvl import EGOTINY, build
from egobench.spec.quantization import Quantization

WRITERS: dict[str, Callable[..., Any]] = {"int8": quantize_int8, "int4": quantize_int4, "fp8": quantize_fp8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    for kind, write in WRITERS.items():
        write(EGOTINY, root / kind, Quantization(), None)
    return {kind: root / kind for kind in WRITERS}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> CalibrationSet:
    return drawn(egoworld(tmp_path_factory.mktemp("cache"), "validation", 16), 4)


def changed(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Return a copy of a folder whose tensors were changed."""
    shutil.copytree(folder, target)
    path = target / "model.safetensors"
    with safe_open(path, framework="pt") as tensors:
        told = tensors.metadata()
    state = load_file(path)
    change(state)
    save_file(state, path, metadata=told)
    return target


def reconfigured(folder: Path, target: Path, **changes: Any) -> Path:
    """Return a copy of a folder whose `quantization_config` was changed; None removes a key."""
    shutil.copytree(folder, target)
    path = target / "config.json"
    config = json.loads(path.read_text())
    settings = config["quantization_config"] | changes
    config["quantization_config"] = {key: value for key, value in settings.items() if value is not None}
    path.write_text(json.dumps(config))
    return target


def test_a_plain_folder_is_the_model_itself(asked: CalibrationSet) -> None:
    ours = load_quantized(EGOTINY, CPU, torch.float32)
    theirs = build({"path": str(EGOTINY)}, attention="sdpa", dtype=torch.float32, device=CPU, seed=0)
    assert torch.equal(logits(ours.model, asked), logits(theirs.model, asked))
    assert not ours.model.training
    told = ("image_px", "patch_px", "num_image_tokens", "image_token_id", "pad_token_id", "end_token_id", "digest")
    assert all(getattr(ours, name) == getattr(theirs, name) for name in told)
    assert held_bytes(ours.model) == held_bytes(theirs.model)
    assert 1 <= held_bytes(ours.model) / (4 * ours.num_parameters) < 1.01  # and some buffers


@pytest.mark.parametrize("kind", sorted(WRITERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_come_out_in_the_format_that_is_asked_for(
    kind: str, dtype: torch.dtype, folders: dict[str, Path], asked: CalibrationSet
) -> None:
    loaded = load_quantized(folders[kind], CPU, dtype)
    inputs = next(iter(asked.inputs()))
    with torch.no_grad():
        made = loaded.model(**{**inputs, "pixel_values": inputs["pixel_values"].to(loaded.model.dtype)}).logits
    assert made.dtype == dtype == loaded.model.dtype
    assert made.isfinite().all()
    assert loaded.model.generation_config.eos_token_id == loaded.end_token_id


@pytest.mark.slow
def test_a_fresh_process_needs_nothing_but_the_folder(
    folders: dict[str, Path], asked: CalibrationSet, tmp_path: Path
) -> None:
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from egobench.compress.load import load_quantized\n"
        "torch.set_num_threads(1)\n"
        "loaded = load_quantized(Path(sys.argv[1]), torch.device('cpu'), torch.float32)\n"
        "inputs = torch.load(sys.argv[2], weights_only=True)\n"
        "with torch.no_grad():\n"
        "    torch.save(loaded.model(**inputs).logits, sys.argv[3])\n"
    )
    alone = tmp_path / "elsewhere" / "model"
    shutil.copytree(folders["int4"], alone)
    inputs = next(iter(asked.inputs()))
    torch.save(inputs, tmp_path / "given.pt")
    paths = (alone, tmp_path / "given.pt", tmp_path / "made.pt")
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # GPTQModel talks; stdout is for data
    with torch.no_grad():
        here = load_quantized(folders["int4"], CPU, torch.float32).model(**inputs).logits
    assert torch.allclose(torch.load(tmp_path / "made.pt", weights_only=True), here, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_a_tensor_that_is_missing_is_no_random_number(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    def lose(state: dict[str, torch.Tensor]) -> None:
        [name] = [name for name in state if name.endswith("vision_tower.encoder.layer.1.mlp.fc1.weight")]
        del state[name]

    folder = changed(folders[kind], tmp_path / "folder", lose)
    with pytest.raises(
        InvalidInput, match=r"1 tensors do not fit config.json, such as .*layer\.1\.mlp\.fc1\.weight: m"
    ):
        load_quantized(folder, CPU, torch.float32)


def test_a_layer_in_another_layout_than_the_configuration_says_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Without its list of exceptions, the vision tower would be read as packed layers, which it is not."""
    everything = reconfigured(folders["fp8"], tmp_path / "fp8", ignore=[])
    with pytest.raises(InvalidInput, match=r"tensors do not fit config.json"):
        load_quantized(everything, CPU, torch.float32)


def test_a_damaged_file_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for kind, folder in folders.items():
        target = tmp_path / kind
        shutil.copytree(folder, target)
        path = target / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(InvalidInput, match=r"model\.safetensors: damaged"):
            load_quantized(target, CPU, torch.float32)


def test_no_checkpoint_and_an_unknown_quantization_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no config\.json in"):
        load_quantized(tmp_path, CPU, torch.float32)
    strange = reconfigured(folders["int8"], tmp_path / "strange", quant_method="abacus")
    with pytest.raises(
        InvalidInput, match=r"is quantized with 'abacus'; allowed: awq, gptq, torchao, compressed-tensors"
    ):
        load_quantized(strange, CPU, torch.float32)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("int8", r"reading torchao needs torchao: pip install 'egobench\[torchao\]'"),
        ("int4", r"reading gptq needs gptqmodel: pip install 'egobench\[quant\]'"),
        ("fp8", r"reading compressed-tensors needs compressed_tensors: pip install 'egobench\[quant\]'"),
    ],
)
def test_a_missing_package_is_told(
    kind: str, message: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=message):
        load_quantized(folders[kind], CPU, torch.float32)
