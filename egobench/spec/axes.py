"""The axes of a matrix: their names, values, defaults, and which file builds each value.

A value that names `module:attribute` runs today. A value that names None is a word of the
field that egobench knows but cannot run yet: a matrix may use it, and the plan drops the
cell as `incompatible` and says so. Adding a value is one file and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STRATEGIES: dict[str, str | None] = {
    "single": "egobench.train.strategies.single:SingleStrategy",
    "ddp": "egobench.train.strategies.ddp:DdpStrategy",
    "fsdp": None,
    "zero1": None,
    "zero2": None,
    "zero3": None,
}
METHODS: dict[str, str | None] = {
    "full": "egobench.train.methods:full",
    "lora": None,
    "dora": None,
    "qlora": None,
    "freeze": None,
}
PRECISIONS: dict[str, str | None] = {
    "fp32": "egobench.train.precision:FP32",
    "tf32": None,
    "bf16": "egobench.train.precision:BF16",
    "bf16_pure": None,
    "fp16": None,
    "fp8": None,
}
ATTENTIONS: dict[str, str | None] = {
    "eager": "transformers",
    "sdpa": "transformers",
    "sdpa_flash": None,
    "sdpa_cudnn": None,
    "sdpa_efficient": None,
    "flash_attention_2": None,
    "flash_attention_3": None,
    "flex": None,
}
CHECKPOINTINGS: dict[str, str | None] = {
    "none": "egobench.train.checkpointing:none",
    "full": "egobench.train.checkpointing:full",
    "selective": None,
}
PADDINGS: dict[str, str | None] = {
    "max": "egobench.data.batches:pad_to_max",
    "dynamic": "egobench.data.batches:pad_to_longest",
    "bucketed": None,
    "packed": None,
}
OPTIMIZERS: dict[str, str | None] = {
    "adamw": "egobench.train.optimizers:adamw",
    "adamw_fused": "egobench.train.optimizers:adamw_fused",
    "adamw_8bit": None,
    "adamw_8bit_paged": None,
}
LOSSES: dict[str, str | None] = {
    "plain": "egobench.train.losses:plain",
    "chunked": None,
    "fused_linear": None,
}
COMPILES: dict[str, str | None] = {"off": "egobench.train.compile:off", "blocks": None, "whole": None}


@dataclass(frozen=True)
class Axis:
    """One axis of the matrix."""

    name: str
    default: str | int | float | None
    """Used where neither the matrix nor the workload's `defaults` give a value; None: the workload decides."""
    why: str
    """One sentence for the JSON schema and the docs."""
    table: Mapping[str, str | None] | None = None
    """Value -> builder for a named axis; None for a numeric or free one."""
    kind: type[str] | type[int] | type[float] = str
    minimum: float = 1


AXES: dict[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis("workload", None, "Name of a file in benchmarks/: model, data, shapes and recipe."),
        Axis("strategy", "single", "How parameters, gradients and optimizer states are spread over ranks.", STRATEGIES),
        Axis("gpus", 1, "Ranks of the trial, one per GPU (on a CPU site: one process each).", kind=int),
        Axis("method", "full", "Which parameters are trained.", METHODS),
        Axis("precision", "fp32", "Number format of compute; bf16 keeps fp32 master weights.", PRECISIONS),
        Axis("attention", "sdpa", "Attention kernel of the tower and the LLM.", ATTENTIONS),
        Axis("checkpointing", "none", "Which activations are recomputed in the backward pass.", CHECKPOINTINGS),
        Axis("compile", "off", "What torch.compile sees.", COMPILES),
        Axis("padding", "dynamic", "How samples of different length share a batch.", PADDINGS),
        Axis("optimizer", "adamw", "Optimizer and the format of its states.", OPTIMIZERS),
        Axis("loss", "plain", "How the cross-entropy over the vocabulary is computed.", LOSSES),
        Axis("micro_batch_size", 8, "Samples per rank per forward pass.", kind=int),
        Axis("num_accumulation_steps", 1, "Forward passes per optimizer update.", kind=int),
        Axis("learning_rate", None, "Peak learning rate; default: the workload's recipe.", kind=float, minimum=0),
        Axis("num_steps", None, "Optimizer updates; default: the workload's recipe.", kind=int),
        Axis("image_px", None, "Side of the square image in pixels; default: the workload's.", kind=int),
        Axis("max_length", None, "Longest sequence in tokens; default: the workload's recipe.", kind=int),
    )
}

AxisValue = str | int | float
Point = dict[str, Any]
"""Axis name -> value, for every axis (after defaults)."""
