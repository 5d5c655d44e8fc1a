"""Checkpoints for TensorRT-LLM, by nvidia-modelopt: its unified Hugging Face layout, which vLLM and SGLang read too.

transformers does not read it, so nothing here can be loaded by `load.py`: what a runtime on a GPU is handed is a folder
whose files `check` compares with what they promise.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from egobench.compress.calibration import CalibrationSet
from egobench.compress.checkpoint import finish_config, needs, plain_source, weight_files, written_whole
from egobench.compress.choice import check_4bit, hub_name, left_alone, split
from egobench.compress.facts import facts_of, needed
from egobench.errors import InvalidInput, Mistake
from egobench.models.internvl import FAMILY
from egobench.spec.quantization import Quantization

NOTES: Final = "hf_quant_config.json"
SCHEMES: Final = {"awq": ("INT4_AWQ_CFG", "W4A16_AWQ", 4), "fp8_static": ("FP8_DEFAULT_CFG", "FP8", 8)}
"""Kind -> modelopt's settings, the name that TensorRT-LLM has for the result, bits."""


def export(
    kind: str, source: Path, target: Path, how: Quantization, calibration: CalibrationSet | None
) -> dict[str, Any]:
    """Quantize a folder for TensorRT-LLM, check what came of it, and return the facts.

    Raises:
        InvalidInput: the folder cannot be quantized so, or TensorRT-LLM has no such kind.
        EnvironmentProblem: modelopt is missing, or the disk is full.
    """
    began = time.perf_counter()
    if kind not in SCHEMES:
        allowed = f"allowed: {', '.join(SCHEMES)}"
        raise InvalidInput([Mistake("variants.kind", f"{kind!r} has no layout that TensorRT-LLM reads", allowed)])
    scheme, _, bits = SCHEMES[kind]
    config = plain_source(source)
    if bits == 4:
        check_4bit(kind, config, how)
    drawn = needed(kind, calibration)
    library = needs("modelopt", f"{kind} for TensorRT-LLM", "tensorrt", "nvidia-modelopt")
    import modelopt.torch.quantization as quantization
    from modelopt.torch.export import export_hf_checkpoint

    with written_whole(source, target) as folder:
        model = FAMILY.from_pretrained(source, dtype=torch.bfloat16, local_files_only=True).eval()
        names = split(model, config, how)
        settings = _settings(getattr(quantization, scheme), config, how)
        quantization.quantize(model, settings, lambda running: _calibrate(running, drawn))
        with torch.inference_mode():
            export_hf_checkpoint(model, export_dir=folder)
        finish_config(config, folder)
        check(folder, kind, names[0])
    return facts_of(
        kind, source, target, names,
        library=library, layout=f"modelopt {SCHEMES[kind][1]}", bits=bits,
        group_size=how.group_size if bits == 4 else None, in_memory="packed in TensorRT-LLM and vLLM",
        calibration=drawn, quantize_time_s=time.perf_counter() - began,
    )  # fmt: skip


def _settings(defaults: dict[str, Any], config: dict[str, Any], how: Quantization) -> dict[str, Any]:
    """Return modelopt's settings with the parts that are left switched off, and the group size."""
    settings = copy.deepcopy(defaults)
    rules: list[dict[str, Any]] = settings["quant_cfg"]
    for rule in rules:
        blocks = (rule.get("cfg") or {}).get("block_sizes") if isinstance(rule.get("cfg"), dict) else None
        if blocks and -1 in blocks:
            blocks[-1] = how.group_size
    off = [f"*{name.removeprefix('model.')}*" for name in left_alone(config, how)]
    settings["quant_cfg"] = [*rules, *({"quantizer_name": name, "enable": False} for name in dict.fromkeys(off))]
    return settings


def _calibrate(model: nn.Module, drawn: CalibrationSet) -> None:
    device = next(model.parameters()).device
    for inputs in drawn.inputs(device):
        model(**{**inputs, "pixel_values": inputs["pixel_values"].to(torch.bfloat16)}, use_cache=False)


def check(folder: Path, kind: str, names: list[str]) -> None:
    """Compare the files with what they promise: the algorithm, and for every layer its matrix and its scales.

    Raises:
        InvalidInput: something is missing or of another shape; all of it at once.
    """
    from safetensors.torch import load_file

    _, algorithm, bits = SCHEMES[kind]
    told = json.loads((folder / NOTES).read_text(encoding="utf-8"))["quantization"]
    state = {name: tensor for path in weight_files(folder) for name, tensor in load_file(path).items()}
    wrong = []
    if told["quant_algo"] != algorithm:
        wrong.append(f"{NOTES} says {told['quant_algo']}, not {algorithm}")
    for name in map(hub_name, names):
        matrix, scale = state.get(f"{name}.weight"), state.get(f"{name}.weight_scale")
        if matrix is None or scale is None:
            wrong.append(f"{name} has no matrix or no scale")
        elif bits == 4:
            shape = (2 * matrix.shape[0], matrix.shape[1] // int(told["group_size"]))
            if matrix.dtype != torch.uint8 or tuple(scale.shape) != shape:
                wrong.append(f"{name}: {matrix.dtype} with scales {tuple(scale.shape)}, not uint8 with {shape}")
        elif matrix.dtype != torch.float8_e4m3fn or f"{name}.input_scale" not in state:
            wrong.append(f"{name}: {matrix.dtype}, or no scale for its inputs")
        if scale is not None and not (scale.isfinite().all() and (scale > 0).all()):
            wrong.append(f"{name}: a scale that is no positive number")
    if wrong:
        raise InvalidInput([Mistake(str(folder), what) for what in wrong])
