"""Low-rank adapters next to frozen matrices (PEFT), whose matrices may be kept in 4 bits (bitsandbytes)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn

from egobench.errors import EnvironmentProblem, InvalidInput, Mistake
from egobench.models.parts import core, head, llm_blocks, projector, tower
from egobench.spec import axes as tables
from egobench.train.methods import trains_projector
from egobench.train.precision import Precision
from egobench.train.resolve import resolve

PROJECTOR = "multi_modal_projector"
EVERY_BLOCK, EVERY_LINEAR = "llm", "all-linear"
"""Values of `lora_targets` that are no regular expressions."""


def lora(model: nn.Module, axes: Mapping[str, Any]) -> nn.Module:
    """Train adapters only: W x + alpha / rank * B A x with W frozen (https://arxiv.org/abs/2106.09685)."""
    return _adapt(model, axes)


def dora(model: nn.Module, axes: Mapping[str, Any]) -> nn.Module:
    """Train adapters for the direction of W, and the length of each of its rows (https://arxiv.org/abs/2402.09353)."""
    return _adapt(model, axes, has_lengths=True)


def qlora(model: nn.Module, axes: Mapping[str, Any]) -> nn.Module:
    """Train adapters next to the LLM's matrices in 4 bits; tower, projector, head and norms keep their format.

    Source: https://arxiv.org/abs/2305.14314 (nf4, double quantisation).
    """
    _quantise(model, _precision(axes).matrices)
    cast("Any", model).is_loaded_in_4bit = True  # PEFT chooses its adapters by it
    return _adapt(model, axes)


def merge(model: nn.Module) -> nn.Module:
    """Return the plain transformers model with the adapters added into its matrices; the adapted one is used up.

    4-bit matrices become those that they stood for, in the format that they were multiplied in: what is added is not
    rounded to 4 bits again. A model without adapters is returned as it is.
    """
    plain: nn.Module = core(model)
    if plain is model:
        return model
    for name, module in list(plain.named_modules()):
        layer = getattr(module, "base_layer", module)
        if _is_4bit(layer) and not name.endswith("base_layer"):
            plain.set_submodule(name, _dequantised(module, layer))
    merged: nn.Module = cast("Any", model).merge_and_unload()
    cast("Any", merged).is_loaded_in_4bit = False
    return merged


def target_names(model: nn.Module, axes: Mapping[str, Any]) -> list[str]:
    """Return the linear layers that get adapters.

    The head never does, because losses multiply with its matrix themselves; nor does a projector that is trained whole.

    Raises:
        InvalidInput: the axis is no regular expression, or one that no whole name matches.
    """
    plain, wanted = core(model), str(axes["lora_targets"])
    left_out = {id(head(model))}
    if trains_projector(axes):
        left_out |= {id(module) for module in projector(model).modules()}
    linear = [name for name, module in _linear(plain) if id(module) not in left_out]
    if wanted == EVERY_LINEAR:
        return linear
    if wanted == EVERY_BLOCK:
        inside = {id(module) for block in llm_blocks(model) for module in block.modules()}
        return [name for name in linear if id(plain.get_submodule(name)) in inside]
    try:
        matching = [name for name in linear if re.fullmatch(wanted, name)]
    except re.error as error:
        raise InvalidInput([_mistake(wanted, f"is no regular expression ({error})")]) from error
    if not matching:
        some = ", ".join(linear[:: max(1, len(linear) // 4)])
        todo = f"write one that matches whole names, such as {some}"
        raise InvalidInput([_mistake(wanted, "matches no linear layer that can have an adapter", todo)])
    return matching


def _mistake(wanted: str, what: str, todo: str = "") -> Mistake:
    allowed = f"allowed: {EVERY_BLOCK}, {EVERY_LINEAR}, a regular expression over module names"
    return Mistake("axes.lora_targets", f"'{wanted}' {what}", allowed, todo)


def _adapt(model: nn.Module, axes: Mapping[str, Any], *, has_lengths: bool = False) -> nn.Module:
    """Freeze the model and put PEFT's adapters into it.

    Raises:
        EnvironmentProblem: peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        what = f"method '{axes['method']}' needs peft: pip install 'egobench[worker]'"
        raise EnvironmentProblem(what) from error
    precision = _precision(axes)
    model.requires_grad_(False)
    projector(model).requires_grad_(trains_projector(axes))
    if has_lengths:
        # PEFT measures the rows now and again at every use, by when they are rounded: they must be rounded now, but
        # be measured in the format of the lengths.
        precision.cast(model)
        dataclasses.replace(precision, autocast=None).cast(model)
    config = peft.LoraConfig(
        r=int(axes["lora_rank"]),
        lora_alpha=axes["lora_alpha"],  # PEFT takes a float too
        lora_dropout=0.0,
        target_modules=target_names(model, axes),
        modules_to_save=[PROJECTOR] if trains_projector(axes) else None,
        use_dora=has_lengths,
    )
    is_meta = next(model.parameters()).is_meta
    adapted: nn.Module = peft.get_peft_model(model, config, low_cpu_mem_usage=is_meta)
    if has_lengths:
        _measure_without_graph(adapted)
        if axes["strategy"] == "zero3":
            _give_gradients(adapted, axes)
    elif precision.autocast is not None:  # DoRA measures rows in the format of its input
        _keep_inputs(adapted)
    return adapted


def _measure_without_graph(adapted: nn.Module) -> None:
    """Have PEFT multiply B by A, of whose product DoRA takes the rows' lengths as constants, outside the graph.

    PEFT detaches it, but `selective` would keep it till the backward pass: 2 bytes for every number of the weight.
    """
    modules: list[Any] = list(adapted.modules())
    for module in modules:
        if hasattr(module, "get_lora_weight"):
            module.get_lora_weight = torch.no_grad()(module.get_lora_weight)


def _give_gradients(adapted: nn.Module, axes: Mapping[str, Any]) -> None:
    """Have embeddings below the first adapters require a gradient that nobody uses.

    DeepSpeed 0.19.8 cuts B up again before its gradient has been added, where what goes into A has none: "The size of
    tensor a (0) must match the size of tensor b (16)". So it is in the first block of a tower, or of an LLM over a
    frozen projector.
    """
    if any(hasattr(module, "lora_A") for module in tower(adapted).modules()):
        below = "vision_tower.embeddings"
    elif not trains_projector(axes):
        below = "language_model.embed_tokens"
    else:
        return

    def require(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            (output[0] if isinstance(output, tuple) else output).requires_grad_()

    core(adapted).model.get_submodule(below).register_forward_hook(require)


def _keep_inputs(adapted: nn.Module) -> None:
    """Stop PEFT from casting the input of every adapter to fp32, only for autocast to cast each copy back again."""
    for module in adapted.modules():
        if hasattr(module, "lora_A"):
            cast("Any", module).cast_input_dtype_enabled = False


def _precision(axes: Mapping[str, Any]) -> Precision:
    found: Precision = resolve(tables.PRECISIONS, axes["precision"], "axes.precision")
    return found


def _linear(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return ((name, one) for name, one in module.named_modules() if isinstance(one, nn.Linear))


def _quantise(model: nn.Module, compute: torch.dtype) -> None:
    """Replace the linear layers of the LLM's blocks by bitsandbytes' Linear4bit, which takes over their weights.

    Bits are stored as numbers of the compute format, the one that FSDP sends parameters in: a cast would spoil them.

    Raises:
        EnvironmentProblem: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise EnvironmentProblem("method 'qlora' needs bitsandbytes: pip install 'egobench[bitsandbytes]'") from error
    nn4bit: Any = bitsandbytes.nn
    form = {"compress_statistics": True, "quant_type": "nf4", "quant_storage": compute}
    for block in llm_blocks(model):
        for name, linear in list(_linear(block)):
            device, has_bias = linear.weight.device, linear.bias is not None
            small = nn4bit.Linear4bit(linear.in_features, linear.out_features, has_bias, compute, **form, device="meta")
            small.weight = nn4bit.Params4bit(linear.weight.data.to(compute), requires_grad=False, module=small, **form)
            small.bias = linear.bias
            # Else answering on a CPU with AVX512-BF16 packs the weights anew, into a form without a backward pass.
            small.support_avx512bf16_for_cpu = False
            small.register_state_dict_post_hook(_leave_out_scales)
            block.set_submodule(name, small.to(device))  # the move is what quantises


def _leave_out_scales(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Keep what the scales and the table of 4-bit weights add to a state dict out of it: no module loads it again.

    It follows from the weights that the model was built with, as do the 4-bit weights themselves.
    """
    for name in [name for name in state if name.startswith(f"{prefix}weight.")]:
        del state[name]


def _is_4bit(module: nn.Module) -> bool:
    return type(module).__name__ == "Linear4bit" and hasattr(module, "quant_state")


def _dequantised(module: Any, layer: Any) -> nn.Linear:
    """Return the plain layer of a 4-bit one, with the adapter that `module` may hold next to it."""
    from peft.utils.integrations import dequantize_bnb_weight

    weight: torch.Tensor = dequantize_bnb_weight(layer.weight, state=layer.weight.quant_state).to(layer.compute_dtype)
    if module is not layer:
        weight = (weight.float() + module.get_delta_weight("default").float()).to(layer.compute_dtype)
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), layer.bias
    return plain
