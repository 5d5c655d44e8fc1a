"""FLOPs of the micro-batches that a rank really computes, on the host, from their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from egobench.data.batches import Batch
from egobench.hardware import gpu_of_device
from egobench.models.attention import sees_grid
from egobench.models.parts import core
from egobench.predict.flops import Flops, Size, execution_by, flops
from egobench.predict.shapes import ModelShape, shape_of
from egobench.predict.trained import WHOLE, Trained, Training, modules


@dataclass(frozen=True)
class FlopMeter:
    """What one model, trained in one way, costs a micro-batch."""

    flops: Flops | None
    """None: an architecture whose FLOPs are not known."""
    is_plain: bool
    """The loss computes the logits of every position, padding included."""
    attention: str
    """Kernel of the LLM."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return what a step line counts of a micro-batch: its tokens, and its FLOPs where they are known."""
        counted = batch.counts()
        if self.flops is not None:
            counted["model_flops"] = self.flops.needed(needed_size(batch))
            counted["hardware_flops"] = self.flops.executed(self.executed_size(batch))
        return counted

    def executed_size(self, batch: Batch) -> Size:
        """Return what is executed of a batch."""
        in_grid = sees_grid(self.attention, on_gpu=batch.input_ids.is_cuda)
        return executed_size(batch, is_plain=self.is_plain, in_grid=in_grid)


def flop_meter(model: nn.Module, axes: Mapping[str, Any]) -> FlopMeter:
    """Look at a model before compile and strategy wrap it, and at how the axes will execute it."""
    is_plain, attention = axes["loss"] == "plain", str(axes["attention"])
    shape = shape_of(core(model).config.to_dict())
    if shape is None:
        return FlopMeter(None, is_plain, attention)
    return FlopMeter(flops(shape, trained_of(model, shape), execution_by(shape, axes)), is_plain, attention)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return what the device could do at best at a precision, in FLOP/s; None where its datasheet is not known."""
    if device.type != "cuda":
        return None
    gpu = gpu_of_device(torch.cuda.get_device_name(device))
    return gpu.peak_at(precision) if gpu is not None else None


def needed_size(batch: Batch) -> Size:
    """Return what the update needs of a batch: no padding, no logits but those that are supervised."""
    return Size(len(batch.pixels), sum(batch.lengths), _squares(batch), batch.supervised_tokens)


def executed_size(batch: Batch, *, is_plain: bool, in_grid: bool = False) -> Size:
    """Return what is executed of a batch.

    Args:
        batch: A micro-batch.
        is_plain: The loss computes all logits.
        in_grid: The kernel sees packed samples side by side; else one by one, or it knows their boundaries.
    """
    rows, width = batch.input_ids.shape
    scores = rows * width**2 if batch.cu_seqlens is None else _squares(batch)
    if in_grid and batch.grid is not None:
        scores = len(batch.lengths) * max(batch.lengths) ** 2
    return Size(len(batch.pixels), rows * width, scores, rows * width if is_plain else batch.supervised_tokens)


def _squares(batch: Batch) -> int:
    return sum(length**2 for length in batch.lengths)


def trained_of(model: nn.Module, shape: ModelShape) -> Trained:
    """Return what a model trains, from what requires a gradient."""
    matrices, others = shape.matrices(), modules(shape)
    trained: dict[str, Training] = {}
    touched = set()
    for name, parameter in core(model).named_parameters(remove_duplicate=False):
        # PEFT keeps a spare copy of a module that it trains whole, and puts the other in a drawer.
        if not parameter.requires_grad or ".original_module." in name:
            continue
        owner, _, kind = name.replace(".modules_to_save.default", "").replace(".base_layer", "").rpartition(".")
        if ".lora_" in owner:
            adapted, _, part = owner.partition(".lora_")
            before = trained.get(adapted, Training())
            rank = parameter.shape[0] if part.startswith("A.") else before.rank
            trained[adapted] = Training(before.weight, rank, before.is_dora or part.startswith("magnitude_vector."))
        elif owner in matrices and kind == "weight":
            trained[owner] = WHOLE
        else:
            touched |= {module for module in others if owner == module or owner.startswith(f"{module}.")}
    return Trained(trained, frozenset(touched))
