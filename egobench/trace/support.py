"""What can be traced, and as what: no guess stands for what cannot."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Final

from egobench.records.trace import TraceRequest
from egobench.spec.axes import MAX, SAME

STAND_INS: Final = {"flash_attention_2": "sdpa_flash", "flash_attention_3": "sdpa_flash"}
"""Kernels that run on a GPU only -> one that keeps the same tensors for the backward pass."""
NEEDS: Final = {
    ("loss", "fused_linear"): "its Triton kernels run on real numbers only",
    ("attention", "flex"): "its kernels come out of torch.compile",
    ("vision_attention", "flex"): "its kernels come out of torch.compile",
    ("compile", "blocks"): "torch.compile chooses what is kept for the backward pass",
    ("compile", "whole"): "torch.compile chooses what is kept for the backward pass",
    ("offload", "optimizer"): "all tensors are on one pretended device, and those of the host cannot be told apart",
    ("offload", "parameters"): "all tensors are on one pretended device, and those of the host cannot be told apart",
    ("micro_batch_size", MAX): "its size is found by trying",
    ("optimizer", "adamw_8bit_torchao"): "torch.compile makes the kernels of its step, and so its temporaries",
    ("method", "qlora"): "bitsandbytes' 4-bit weights are tensors of their own kind, which no fake tensor can be",
}
PACKAGES: Final = {
    ("strategy", "zero1"): "deepspeed",
    ("strategy", "zero2"): "deepspeed",
    ("strategy", "zero3"): "deepspeed",
    ("optimizer", "adamw_8bit"): "bitsandbytes",
    ("optimizer", "adamw_8bit_paged"): "bitsandbytes",
    ("precision", "fp8"): "torchao",
    ("method", "lora"): "peft",
    ("method", "dora"): "peft",
}


def refusal(request: TraceRequest) -> str:
    """Return why a cell cannot be traced; empty where it can."""
    cell = request.cell
    if cell.variant is not None:
        return f"variant '{cell.variant.name}' is not made by the training loop alone"
    for (axis, value), because in NEEDS.items():
        if cell.axes.get(axis) == value:
            return f"{axis} '{value}': {because}"
    for (axis, value), package in PACKAGES.items():
        if cell.axes.get(axis) == value and importlib.util.find_spec(package) is None:
            return f"{axis} '{value}': {package} is not installed here"
    return ""


def as_traced(axes: Mapping[str, Any], imitates: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the axes that are traced, and remarks where those are not the cell's."""
    traced, remarks = dict(axes), list[str]()
    for name in ("attention", "vision_attention"):
        kernel = axes["attention"] if axes[name] == SAME else axes[name]
        traced[name] = STAND_INS.get(kernel, kernel)
        if imitates == "cuda" and traced[name] != kernel:
            remarks.append(f"{name} '{kernel}' as '{traced[name]}': both keep the same tensors")
    if axes["precision"] == "tf32":
        traced["precision"] = "fp32"  # the same tensors
    traced["num_accumulation_steps"] = min(2, int(axes["num_accumulation_steps"]))
    return traced, tuple(remarks)
