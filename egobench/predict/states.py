"""What a rank holds: parameters, gradients, optimizer states, and what sharding gathers for a while."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

from egobench.predict.constants import SOFTWARE, Software
from egobench.predict.formats import ZERO, Formats, formats
from egobench.predict.gathered import Gathered, gathered
from egobench.predict.numbers import Counts, counts
from egobench.predict.reduced import BUCKET, pieces_of_a_rank, reduced
from egobench.predict.shapes import ModelShape

SHARDED: Final = ("fsdp", "zero3")
EIGHT_BITS: Final = ("adamw_8bit", "adamw_8bit_paged", "adamw_8bit_torchao")
BLOCK_SCALES: Final = 2 * 4 / 256
"""Bytes per number of two 8-bit moments: a float for every 256 of each."""
ZERO_SUB_GROUP: Final = 1_000_000_000
"""Numbers of a rank that stage 3 updates at a time: DeepSpeed's sub_group_size."""


@dataclass(frozen=True)
class States:
    """Bytes of one rank, by the moment."""

    parameters: float
    whole: float
    """The same without sharding."""
    gradients: float
    """Of everything that is trained, when the backward pass has ended."""
    blocks_gradients: float
    """Of the LLM's blocks and its head."""
    head_gradient: float
    """Of the head alone."""
    gradients_kept: float
    """What of them is there all the time: DDP's buckets, sums over micro-steps; ZeRO-3 has room from the start."""
    moments: float
    """And fp32 master weights, where there are any."""
    step_temporary: float
    casts: float
    """16-bit copies of trained weights that autocast keeps until the forward pass has ended."""
    tower_casts: float
    """Of these, those of the tower's blocks."""
    llm_casts: float
    """Of these, those of the LLM's blocks."""
    block_casts: float
    head_casts: float
    gathered: Gathered
    buffers: float
    """Of collectives, all the time."""
    dequantised: float
    """The largest 4-bit matrix, in 16 bits, while it is multiplied with."""


def _moments(count: Counts, optimizer: str, form: Formats) -> float:
    """Return the bytes of both moments of everything that is trained, whole."""
    large, adapters = count.trained, count.adapters
    if optimizer not in EIGHT_BITS:
        adapter = form.adapter if form.moment != 4 else 4
        return 2 * (form.moment * large + adapter * adapters)
    wide = count.trained_embedding if optimizer != "adamw_8bit_torchao" and form.master == 0 else 0.0
    return (large - wide + adapters) * (2 + BLOCK_SCALES) + wide * 8


def _weights(count: Counts, form: Formats, loop: Software) -> float:
    """Return the bytes of all weights, whole."""
    # `prepare_model_for_kbit_training` widens the head too, which is never in 4 bits.
    widened = (4 - form.frozen_matrix) * (count.head if loop.is_stream_fp32 and count.embedding else 0.0)
    return (
        form.trained * count.trained + form.adapter * count.adapters + form.frozen_matrix * count.frozen_matrices
        + form.frozen_other * count.frozen_others + loop.quantised_bytes * count.quantised + widened
    )  # fmt: skip


def _temporary(count: Counts, form: Formats, strategy: str, optimizer: str, is_summed: bool, shards: int) -> float:
    """Return the bytes that an update copies: AdamW's own, and the gradients that ZeRO makes one fp32 tensor of."""
    updated, copied = count.updated, 0.0
    if optimizer == "adamw":
        copied = (form.moment if form.master else form.trained) * count.trained + form.adapter * count.adapters
    if strategy in ZERO and (strategy != "zero2" or not is_summed):
        copied += 4 * updated
    if strategy == "zero3" and updated:
        copied *= min(1.0, ZERO_SUB_GROUP * shards / updated)
    return copied / shards


@functools.lru_cache(maxsize=65536)
def states(
    shape: ModelShape, method: tuple[str, str, int, str], precision: str, strategy: str, sharding: str, offload: str,
    gpus: int, optimizer: str, is_accumulated: bool, software: str, nodes: int = 1,
) -> States:  # fmt: skip
    """Return what a rank holds."""
    count, loop = counts(shape, *method), SOFTWARE[software]
    form = formats(precision, strategy, loop, method[0])
    is_hybrid = strategy == "fsdp" and sharding == "hybrid_shard"
    shards, whole = max(1, gpus // max(2, nodes)) if is_hybrid else gpus, _weights(count, form, loop)
    adapter_gradient = form.adapter if form.master == 0 else form.gradient
    gradients = form.gradient * count.trained + adapter_gradient * count.adapters
    moments = _moments(count, optimizer, form) + form.master * count.updated
    is_split = strategy in ("fsdp", *ZERO)
    is_summed = is_accumulated and strategy in ZERO and form.gradient == 2 and loop.sums_in_fp32
    # Stage 1 is stage 2 without its name, but that micro-steps add up in all gradients, beside those of 16 bits.
    is_whole = strategy == "zero1" and is_accumulated
    if is_summed:
        gradients = (6 if is_whole else 4) * count.updated
    is_in_pieces = strategy in ("zero1", "zero2") and not is_summed and not is_whole
    head = form.gradient * count.head_trained
    split, split_gradients = (shards if is_split else 1), (shards if is_split and not is_whole else 1)
    per = {
        "parameters": whole / (shards if strategy in SHARDED else 1),
        "gradients": gradients / split_gradients,
        "blocks_gradients": (head + form.gradient * count.blocks_trained) / split_gradients,
        "moments": moments / split,
        "step_temporary": _temporary(count, form, strategy, optimizer, is_summed, split),
    }
    if is_in_pieces:
        per["gradients"] = form.gradient * pieces_of_a_rank(count, shards)
    if offload == "parameters":
        per = dict.fromkeys(per, 0.0)
    elif offload == "optimizer":
        per |= {"moments": 0.0, "step_temporary": 0.0}
        if strategy in ("zero2", "zero3"):  # what is reduced goes to the host at once
            per |= {"gradients": 0.0, "blocks_gradients": 0.0}
            head = 0.0
    cast = 2.0 * form.casts_weights
    is_buffered = is_whole and form.gradient == 4  # its buffers stay from one micro-step to the next
    own = per["gradients"] if is_in_pieces and is_accumulated else 0.0
    kept = per["gradients"] * (strategy in ("ddp", "zero3") or is_accumulated)
    kept = max(kept, is_accumulated * _whole_gradients(count, form, strategy, sharding, loop))
    return States(
        **per,
        whole=whole,
        head_gradient=head / split_gradients,
        gradients_kept=kept,
        casts=cast * (count.trained_blocks + count.trained_tower + count.adapters + count.cast_head(form)),
        tower_casts=cast * count.trained_tower,
        llm_casts=cast * (count.trained_blocks + count.adapters),
        block_casts=cast * count.block_trained,
        head_casts=cast * count.cast_head(form),
        buffers=form.compute * min(BUCKET, count.updated) * float((strategy == "zero3") + 2 * is_buffered),
        dequantised=form.compute * count.largest_matrix if count.quantised else 0.0,
        gathered=reduced(
            count, form, own, shards, is_summed, has_buffers=not is_buffered, is_late=is_whole and is_summed
        )
        if strategy in ("zero1", "zero2")
        else gathered(count, form, strategy, sharding, shards, loop),
    )


def _whole_gradients(count: Counts, form: Formats, strategy: str, sharding: str, loop: Software) -> float:
    """Return the bytes of gradients that FSDP holds whole between micro-steps."""
    if strategy != "fsdp":
        return 0.0
    if sharding == "full_shard":
        return form.compute * count.updated * loop.waits_to_reduce
    return form.gradient * count.updated * (loop.holds_gradients and sharding == "shard_grad_op")
