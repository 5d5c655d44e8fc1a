"""FP8 (E4M3) weights and activations by compressed-tensors: what vLLM computes in FP8, and transformers where it can.

A GPU from compute capability 8.9 on multiplies in FP8. Elsewhere weights become what they stand for on the first
forward pass, and activations are rounded to FP8 and back: the same answers, without the speed and the memory.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from egobench.compress.calibration import CalibrationSet
from egobench.compress.checkpoint import finish_config, needs, plain_source, rest_to_bfloat16, written_whole
from egobench.compress.choice import is_tied, split
from egobench.compress.facts import facts_of, needed
from egobench.models.internvl import FAMILY
from egobench.spec.quantization import Quantization

IN_MEMORY: Final = "packed where FP8 kernels are (GPU, compute capability 8.9); else dense after the first forward pass"


def quantize_fp8(source: Path, target: Path, how: Quantization, calibration: CalibrationSet | None) -> dict[str, Any]:
    """Write FP8 weights, a scale per output; activations get a scale per token while the model runs.

    Raises:
        InvalidInput: the folder cannot be quantized.
        EnvironmentProblem: compressed-tensors is missing, or the disk is full.
    """
    return _by_compressed_tensors("fp8", source, target, how, None)


def quantize_fp8_static(
    source: Path, target: Path, how: Quantization, calibration: CalibrationSet | None
) -> dict[str, Any]:
    """Write FP8 weights and the scale of each layer's activations, one per matrix, from what calibration reached.

    Raises:
        InvalidInput: the folder cannot be quantized, or there is no calibration set.
        EnvironmentProblem: compressed-tensors is missing, or the disk is full.
    """
    return _by_compressed_tensors("fp8_static", source, target, how, needed("fp8_static", calibration))


def _by_compressed_tensors(
    kind: str, source: Path, target: Path, how: Quantization, drawn: CalibrationSet | None
) -> dict[str, Any]:
    began = time.perf_counter()
    config = plain_source(source)
    library = needs("compressed_tensors", kind, "quant", "compressed-tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import apply_quantization_config

    ignored = _ignored(config, how)
    with written_whole(source, target) as folder:
        model = FAMILY.from_pretrained(source, dtype=torch.float32, local_files_only=True).eval()
        names = split(model, config, how)
        reached = _ranges(model, names[0], drawn) if drawn is not None else {}
        apply_quantization_config(model, _scheme(drawn is not None, ignored), show_progress=False)
        _fill_scales(model, names[0], reached)
        compressor = ModelCompressor.from_pretrained_model(model)
        # It would name each layer that is left, by names that transformers does not have at run time.
        compressor.quantization_config.ignore = ignored
        compressor.compress_model(model)
        rest_to_bfloat16(model)
        model.save_pretrained(folder)
        compressor.update_config(str(folder))
        finish_config(config, folder)
    return facts_of(
        kind, source, target, names,
        library=library, layout="compressed-tensors float-quantized", bits=8, group_size=None, in_memory=IN_MEMORY,
        calibration=drawn, quantize_time_s=time.perf_counter() - began,
    )  # fmt: skip


def _ignored(config: dict[str, Any], how: Quantization) -> list[str]:
    if how.parts == "all":
        return ["re:.*lm_head"] if is_tied(config) else []
    return ["re:.*vision_tower.*", "re:.*multi_modal_projector.*", "re:.*lm_head"]


def _scheme(is_static: bool, ignored: list[str]) -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    def e4m3(strategy: str, **more: Any) -> Any:
        return QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy=strategy, **more)

    if is_static:
        weights, activations = e4m3("tensor"), e4m3("tensor", dynamic=False)
    else:
        weights, activations = e4m3("channel"), e4m3("token", dynamic=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations)
    return QuantizationConfig(config_groups={"group_0": scheme}, ignore=ignored)


@torch.no_grad()
def _ranges(model: nn.Module, names: list[str], drawn: CalibrationSet) -> dict[str, torch.Tensor]:
    """Return the largest magnitude [1] that reached each of the layers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reached = {name: torch.zeros(1, device=device) for name in names}

    def watch(name: str) -> Any:
        def see(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            torch.maximum(reached[name], inputs[0].abs().amax().reshape(1), out=reached[name])

        return see

    model.to(device)
    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    for inputs in drawn.inputs(device):
        model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    model.to("cpu")
    return {name: value.cpu() for name, value in reached.items()}


@torch.no_grad()
def _fill_scales(model: nn.Module, names: list[str], reached: dict[str, torch.Tensor]) -> None:
    from compressed_tensors.quantization.utils import calculate_qparams

    for name in names:
        module: Any = model.get_submodule(name)
        scheme = module.quantization_scheme
        if scheme.weights.strategy == "tensor":
            low, high = module.weight.amin().reshape(1), module.weight.amax().reshape(1)
        else:
            low, high = module.weight.aminmax(dim=1, keepdim=True)
        module.weight_scale.copy_(calculate_qparams(low, high, scheme.weights)[0])
        if name in reached:
            scale, _ = calculate_qparams(-reached[name], reached[name], scheme.input_activations)
            module.input_scale.copy_(scale)
