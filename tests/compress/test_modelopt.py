"""What TensorRT-LLM is handed stands for the model: read by hand, because transformers does not read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from folders import CPU, drawn, egoworld, logits
from safetensors.torch import load_file, save_file

from egobench.compress.calibration import CalibrationSet
from egobench.compress.modelopt import NOTES, check, export
from egobench.errors import InvalidInput
from egobench.models.internvl import EGOTINY, FAMILY, build
from egobench.spec.quantization import Quantization

NUM_LLM_LAYERS = 21
BOUNDS = {"awq": 0.09, "fp8_static": 0.045}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def calibration(cache: Path) -> CalibrationSet:
    return drawn(egoworld(cache, "train", 64), 8)


@pytest.fixture(scope="module")
def asked(cache: Path) -> CalibrationSet:
    return drawn(egoworld(cache, "validation", 64), 8)


def dense(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """Return the weights that a folder stands for: 4-bit rows lie in pairs in a byte, the even one low."""
    state = load_file(folder / "model.safetensors")
    whole = {}
    for name, tensor in state.items():
        layer, _, what = name.rpartition(".")
        if what in ("weight_scale", "input_scale", "pre_quant_scale"):
            continue
        scale = state.get(f"{layer}.weight_scale")
        if what == "weight" and scale is not None:
            if kind == "awq":
                low, high = (tensor & 15).to(torch.int8), (tensor >> 4).to(torch.int8)
                rows = torch.stack([low, high], 1).flatten(0, 1).float()
                rows = torch.where(rows > 7, rows - 16, rows)
                rows = (rows.unflatten(1, (scale.shape[1], -1)) * scale[:, :, None]).flatten(1)
                tensor = rows * state.get(f"{layer}.pre_quant_scale", torch.ones(rows.shape[1])).float()
            else:
                tensor = tensor.float() * scale
        whole[name] = tensor
    return whole


@pytest.mark.parametrize("kind", [pytest.param("awq", marks=pytest.mark.slow), "fp8_static"])
def test_the_folder_stands_for_the_model(
    kind: str, calibration: CalibrationSet, asked: CalibrationSet, tmp_path: Path
) -> None:
    facts = export(kind, EGOTINY, tmp_path / kind, Quantization(group_size=64), calibration)
    assert facts["num_quantized"] == NUM_LLM_LAYERS and facts["library"].startswith("nvidia-modelopt ")
    assert facts["size_bytes"] < 0.45 * facts["source_bytes"]
    told = json.loads((tmp_path / kind / NOTES).read_text())["quantization"]
    assert told.get("group_size") == (64 if kind == "awq" else None)
    assert {"vision_tower*", "multi_modal_projector*"} <= set(told["exclude_modules"])
    config = json.loads((tmp_path / kind / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "modelopt"
    assert (tmp_path / kind / "tokenizer.json").read_bytes() == (EGOTINY / "tokenizer.json").read_bytes()

    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    save_file(dense(tmp_path / kind, kind), unpacked / "model.safetensors", metadata={"format": "pt"})
    (unpacked / "config.json").write_bytes((EGOTINY / "config.json").read_bytes())
    made = logits(FAMILY.from_pretrained(unpacked, dtype=torch.float32).eval(), asked)
    plain = logits(build({"name": "egotiny"}, attention="sdpa", dtype=torch.float32, device=CPU, seed=0).model, asked)
    assert BOUNDS[kind] / 20 < float((made - plain).norm() / plain.norm()) < BOUNDS[kind]

    names = ["model.language_model.layers.0.mlp.down_proj", "model.language_model.layers.0.self_attn.q_proj"]
    check(tmp_path / kind, kind, names)
    path = tmp_path / kind / "model.safetensors"
    state = load_file(path)
    del state["language_model.model.layers.0.mlp.down_proj.weight_scale"]
    state["language_model.model.layers.0.self_attn.q_proj.weight_scale"].zero_()
    save_file(state, path)
    with pytest.raises(InvalidInput) as caught:
        check(tmp_path / kind, kind, names)
    assert [mistake.what.partition("layers.0.")[2] for mistake in caught.value.mistakes] == [
        "mlp.down_proj has no matrix or no scale", "self_attn.q_proj: a scale that is no positive number",
    ]  # fmt: skip


def test_a_kind_that_tensorrt_llm_does_not_read_is_refused(calibration: CalibrationSet, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"'gptq' has no layout that TensorRT-LLM reads; allowed: awq, fp8_static"):
        export("gptq", EGOTINY, tmp_path / "target", Quantization(), calibration)
