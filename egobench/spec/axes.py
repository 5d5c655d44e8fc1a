"""The axes of a matrix: their names, values, defaults, and which file builds each value.

A value names what builds it (`module:attribute`; a module alone where the value is an option that others read).
Adding a value is one file and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STRATEGIES: dict[str, str] = {
    "single": "egobench.train.strategies.single:SingleStrategy",
    "ddp": "egobench.train.strategies.ddp:DdpStrategy",
    "fsdp": "egobench.train.strategies.fsdp:FsdpStrategy",
    "zero1": "egobench.train.strategies.zero:ZeroStrategy",
    "zero2": "egobench.train.strategies.zero:ZeroStrategy",
    "zero3": "egobench.train.strategies.zero:ZeroStrategy",
}
SHARDINGS: dict[str, str] = {
    "full_shard": "egobench.train.strategies.fsdp",
    "shard_grad_op": "egobench.train.strategies.fsdp",
    "hybrid_shard": "egobench.train.strategies.fsdp",
}
OFFLOADS: dict[str, str] = {
    "none": "egobench.train.strategies",
    "optimizer": "egobench.train.strategies.zero",
    "parameters": "egobench.train.strategies",
}
METHODS: dict[str, str] = {
    "full": "egobench.train.methods:full",
    "lora": "egobench.train.adapters:lora",
    "dora": "egobench.train.adapters:dora",
    "qlora": "egobench.train.adapters:qlora",
    "freeze": "egobench.train.methods:freeze",
    "last_blocks": "egobench.train.methods:last_blocks",
}
PROJECTORS: dict[str, str] = {"trained": "egobench.train.methods", "frozen": "egobench.train.methods"}
PRECISIONS: dict[str, str] = {
    "fp32": "egobench.train.precision:FP32",
    "tf32": "egobench.train.precision:TF32",
    "bf16": "egobench.train.precision:BF16",
    "bf16_pure": "egobench.train.precision:BF16_PURE",
    "fp16": "egobench.train.precision:FP16",
    "fp8": "egobench.train.precision:FP8",
}
ATTENTIONS: dict[str, str] = {
    "eager": "egobench.models.attention:eager",
    "sdpa": "egobench.models.attention:sdpa",
    "sdpa_flash": "egobench.models.attention:sdpa_flash",
    "sdpa_cudnn": "egobench.models.attention:sdpa_cudnn",
    "sdpa_efficient": "egobench.models.attention:sdpa_efficient",
    "flash_attention_2": "egobench.models.attention:flash_attention_2",
    "flash_attention_3": "egobench.models.attention:flash_attention_3",
    "flex": "egobench.models.attention:flex",
}
CHECKPOINTINGS: dict[str, str] = {
    "none": "egobench.train.checkpointing:none",
    "full": "egobench.train.checkpointing:full",
    "selective": "egobench.train.checkpointing:selective",
    "every_2": "egobench.train.checkpointing:every_2",
    "every_4": "egobench.train.checkpointing:every_4",
}
PADDINGS: dict[str, str] = {
    "max": "egobench.data.batches:MAX",
    "dynamic": "egobench.data.batches:DYNAMIC",
    "bucketed": "egobench.data.batches:BUCKETED",
    "packed": "egobench.data.batches:PACKED",
}
OPTIMIZERS: dict[str, str] = {
    "adamw": "egobench.train.optimizers:adamw",
    "adamw_fused": "egobench.train.optimizers:adamw_fused",
    "adamw_8bit": "egobench.train.optimizers:adamw_8bit",
    "adamw_8bit_paged": "egobench.train.optimizers:adamw_8bit_paged",
    "adamw_8bit_torchao": "egobench.train.optimizers:adamw_8bit_torchao",
}
LOSSES: dict[str, str] = {
    "plain": "egobench.train.losses:PLAIN",
    "chunked": "egobench.train.losses:CHUNKED",
    "fused_linear": "egobench.train.losses:FUSED_LINEAR",
}
COMPILES: dict[str, str] = {
    "off": "egobench.train.compile:off",
    "blocks": "egobench.train.compile:blocks",
    "whole": "egobench.train.compile:whole",
}
SAME = "same"
"""Value of an axis of the tower that follows the axis of the LLM."""
VISION_ATTENTIONS: dict[str, str] = {SAME: "egobench.models.attention", **ATTENTIONS}
VISION_CHECKPOINTINGS: dict[str, str] = {SAME: "egobench.train.checkpointing", **CHECKPOINTINGS}
MAX = "max"
"""Micro batch: the largest that fits, found by a search."""


@dataclass(frozen=True)
class Axis:
    """One axis of the matrix."""

    name: str
    default: str | int | float | None
    """Used where neither the matrix nor the workload's `defaults` give a value; None: the workload decides."""
    why: str
    """One sentence for the JSON schema and the docs."""
    table: Mapping[str, str] | None = None
    """Value -> builder for a named axis; None for a numeric or free one."""
    kind: type[str] | type[int] | type[float] = str
    minimum: float = 1
    words: tuple[str, ...] = ()
    """Values of a numeric axis that are no numbers."""


AXES: dict[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis("workload", None, "Name of a file in benchmarks/: model, data, shapes and recipe."),
        Axis("strategy", "single", "How parameters, gradients and optimizer states are spread over ranks.", STRATEGIES),
        Axis("sharding", "full_shard", "fsdp: whether parameters stay whole between forward and backward.", SHARDINGS),
        Axis("offload", "none", "fsdp and zero: what is kept in the memory of the host.", OFFLOADS),
        Axis("gpus", 1, "Ranks of the trial, one per GPU (on a CPU site: one process each).", kind=int),
        Axis("method", "full", "Which parameters are trained.", METHODS),
        Axis("projector", "trained", "Whether a method that freezes much also trains the projector.", PROJECTORS),
        Axis("lora_rank", 16, "lora, dora and qlora: rank of the adapters.", kind=int),
        Axis("lora_alpha", 32.0, "lora, dora and qlora: adapters are scaled by alpha / rank.", kind=float, minimum=0),
        Axis("lora_targets", "llm", "Where adapters go: llm, all-linear, or a regular expression over module names."),
        Axis("precision", "fp32", "Number format of compute; bf16 keeps fp32 master weights.", PRECISIONS),
        Axis("attention", "sdpa", "Attention kernel of the LLM, and of the tower.", ATTENTIONS),
        Axis("vision_attention", SAME, "Attention kernel of the tower, where it is another one.", VISION_ATTENTIONS),
        Axis("checkpointing", "none", "Which activations are recomputed in the backward pass.", CHECKPOINTINGS),
        Axis("vision_checkpointing", SAME, "The same for the tower, where it differs.", VISION_CHECKPOINTINGS),
        Axis("compile", "off", "What torch.compile sees.", COMPILES),
        Axis("padding", "dynamic", "How samples of different length share a batch.", PADDINGS),
        Axis("optimizer", "adamw", "Optimizer and the format of its states.", OPTIMIZERS),
        Axis("loss", "plain", "How the cross-entropy over the vocabulary is computed.", LOSSES),
        Axis("micro_batch_size", 8, "Samples per rank per forward pass; max: what fits.", kind=int, words=(MAX,)),
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
