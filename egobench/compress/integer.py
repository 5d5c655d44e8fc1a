"""Integers without calibration: int8 weights, int8 weights and activations (torchao), int4 weights (GPTQModel)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from egobench.compress.calibration import CalibrationSet
from egobench.compress.checkpoint import (
    finish_config,
    needs,
    plain_source,
    rest_to_bfloat16,
    weight_files,
    written_whole,
)
from egobench.compress.choice import hub_name, left_alone, split
from egobench.compress.facts import facts_of
from egobench.compress.packed import pack
from egobench.models.internvl import FAMILY
from egobench.spec.quantization import Quantization


def quantize_int8(source: Path, target: Path, how: Quantization, calibration: CalibrationSet | None) -> dict[str, Any]:
    """Write int8 weights, a scale per output; products are of the activations' format.

    Raises:
        InvalidInput: the folder cannot be quantized.
        EnvironmentProblem: torchao is missing, or the disk is full.
    """
    return _by_torchao("int8", "Int8WeightOnlyConfig", source, target, how)


def quantize_int8_dynamic(
    source: Path, target: Path, how: Quantization, calibration: CalibrationSet | None
) -> dict[str, Any]:
    """Write int8 weights, a scale per output, that are multiplied with int8 activations, a scale per token.

    Raises:
        InvalidInput: the folder cannot be quantized.
        EnvironmentProblem: torchao is missing, or the disk is full.
    """
    return _by_torchao("int8_dynamic", "Int8DynamicActivationInt8WeightConfig", source, target, how)


def quantize_int4(source: Path, target: Path, how: Quantization, calibration: CalibrationSet | None) -> dict[str, Any]:
    """Write 4-bit weights rounded to nearest, a scale per group, in GPTQ's layout.

    Raises:
        InvalidInput: the folder cannot be quantized so.
        EnvironmentProblem: GPTQModel is missing, or the disk is full.
    """

    def settings(device: str) -> Any:
        from gptqmodel.quantization.config import RTNConfig

        return RTNConfig(bits=4, group_size=how.group_size, device=device, offload_to_disk=False, pack_impl="original")

    return pack("int4", source, target, how, settings, layout="gptq")


def _by_torchao(kind: str, scheme: str, source: Path, target: Path, how: Quantization) -> dict[str, Any]:
    began = time.perf_counter()
    config = plain_source(source)
    library = needs("torchao", kind, "torchao")
    import torchao.quantization
    from transformers import TorchAoConfig

    with written_whole(source, target) as folder:
        settings = TorchAoConfig(getattr(torchao.quantization, scheme)(), left_alone(config, how))
        # Rounded from what the parent is in, not from bfloat16.
        model = FAMILY.from_pretrained(source, dtype=torch.float32, quantization_config=settings, local_files_only=True)
        names = split(model, config, how)
        rest_to_bfloat16(model)
        model.save_pretrained(folder)
        _name_for_vllm(folder)
        finish_config(config, folder)
    return facts_of(
        kind, source, target, names,
        library=library, layout=f"torchao {scheme}", bits=8, group_size=None, in_memory="packed",
        calibration=None, quantize_time_s=time.perf_counter() - began,
    )  # fmt: skip


def _name_for_vllm(folder: Path) -> None:
    """Describe tensors under the names that they have in the file, too.

    transformers renames tensors when it saves, but not torchao's description of them, which is all it looks at when
    it loads. vLLM puts them together by the names in the file.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            told: dict[str, str] = tensors.metadata()
        names = json.loads(told["tensor_names"])
        told |= {hub_name(name): told[name] for name in names}
        told["tensor_names"] = json.dumps(list(dict.fromkeys([*names, *map(hub_name, names)])))
        save_file(load_file(path), path, metadata=told)
