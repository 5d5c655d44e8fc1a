"""The time of an update: a roofline per group of operations, what launches and waits, and the exposed communication."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from egobench.hardware import Gpu
from egobench.predict.answer import Seconds, Time
from egobench.predict.constants import SOFTWARE
from egobench.predict.network import Channel, Exchange, Traffic, channels, exchange, num_nodes
from egobench.predict.rates import (
    BANDWIDTHS,
    DEFAULT,
    DEFAULT_FRACTION,
    FP8_FRACTION,
    GDDR,
    KERNELS,
    MATMUL_FRACTIONS,
    Loop,
    Rates,
    loop_of,
)
from egobench.predict.setting import Batch, Setting
from egobench.predict.work import Part, Work, work_of
from egobench.spec.axes import SAME

WIDE: Final = ("fp32", "tf32")
PURE: Final = "bf16_pure"
SHARDED: Final = ("fsdp", "zero1", "zero2", "zero3")
ADAMW_ACCESSES: Final[dict[str, float]] = {"adamw": 20.0, "adamw_fused": 7.0}
"""Reads and writes of a number per update: torch's foreach AdamW has one kernel per operation, fused has one in all."""
UNLIMITED: Final = ("A100-80GB SXM", "H100-80GB SXM")
"""The GPUs that the kernels' fractions belong to, before Hopper and from Hopper on."""
FOUR_BITS: Final = 0.53
"""Bytes of a 4-bit number with its scales."""
SUM_ACCESSES: Final = 3.0
"""A gradient that is added to those of earlier micro-steps: two reads and a write."""
RENORM_BYTES: Final = 16.0
"""Of a number of a matrix that DoRA adds its adapter to and takes the rows' lengths of, in 16 bits."""
CLIP_ACCESSES: Final = 3.0
"""The norm reads every gradient, the scaling reads and writes it."""


@dataclass(frozen=True, slots=True, eq=False)
class Speed:
    """What a GPU reaches under one precision, in one loop; made once, and told apart by identity."""

    tower_flops: float
    llm_flops: float
    head_flops: float
    scores_flops: float
    """Of the full square: what a causal mask hides counts as done."""
    tower_scores_flops: float
    bytes_per_s: float
    streamed_bytes_per_s: float
    """The same of an update, which passes over weights and moments that no cache holds."""
    scalar_flops: float
    number_bytes: float
    """Of what products read and write."""
    stream_bytes: float
    """Between blocks."""
    is_cast: bool
    """Autocast makes 16-bit copies of fp32 weights at every forward pass, and their gradients wide again."""
    loop: Loop


def speed(gpu: Gpu, axes: Mapping[str, Any], software: str, rates: Rates) -> Speed | None:
    """Return the speed of a GPU under a cell's axes; None where its peak is not known."""
    precision, own = axes["precision"], axes["vision_attention"]
    own_format = loop_of(software, axes["compile"]).block_format
    peak = gpu.peak_at("bf16" if precision == "fp8" else precision)
    blocks = gpu.peak(own_format) if own_format else gpu.peak_at(precision)
    if peak is None or blocks is None:
        return None
    return _speed(
        gpu.name, gpu.compute_capability[0] >= 9, peak, blocks, gpu.bandwidth_bytes_per_s,
        gpu.peak("fp32") or math.inf, precision,
        axes["attention"], axes["attention"] if own == SAME else own, axes["strategy"], software, axes["compile"],
        rates,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _speed(
    gpu: str, is_hopper: bool, peak: float, blocks: float, bandwidth: float, scalar: float, precision: str, kernel: str,
    tower_kernel: str, strategy: str, software: str, compile: str, rates: Rates,
) -> Speed:  # fmt: skip
    loop = loop_of(software, compile)
    fraction = MATMUL_FRACTIONS.get(gpu, DEFAULT_FRACTION)
    share = min(0.98, fraction * rates.matmul_scale)
    # What holds matrix products back (power, mostly) holds attention back too.
    limit = rates.attention_scale * min(1.0, fraction / MATMUL_FRACTIONS[UNLIMITED[is_hopper]])
    scores, hides = _kernel(loop.kernel or kernel, is_hopper, limit)
    tower_scores, _ = _kernel(tower_kernel, is_hopper, limit)
    is_wide = precision in WIDE
    is_autocast = precision in ("bf16", "fp16", "fp8") and strategy in ("single", "ddp")
    return Speed(
        tower_flops=peak * share,
        llm_flops=blocks * share * (FP8_FRACTION if precision == "fp8" else 1.0),
        head_flops=peak * share,
        scores_flops=peak * scores * (2.0 if hides else 1.0),
        tower_scores_flops=peak * tower_scores,
        bytes_per_s=bandwidth * rates.bandwidth_fraction * BANDWIDTHS.get(gpu, 1.0),
        streamed_bytes_per_s=bandwidth * rates.bandwidth_fraction * min(GDDR, BANDWIDTHS.get(gpu, 1.0)),
        scalar_flops=scalar,
        number_bytes=4.0 if is_wide else 2.0,
        stream_bytes=4.0 if is_wide or is_autocast else 2.0,
        is_cast=is_autocast,
        loop=loop,
    )


def _kernel(name: str, is_hopper: bool, limit: float) -> tuple[float, bool]:
    before, hopper, hides = KERNELS[name]
    return (hopper if is_hopper else before) * limit, hides


def predict_time(setting: Setting, rates: Rates = DEFAULT) -> Time | None:
    """Return the time of one update; None where the GPU, its links or the method are not known."""
    axes, machine = setting.axes, setting.machine
    strategy, num_gpus = axes["strategy"], int(axes["gpus"])
    # Only a loop that aims makes logits at supervised positions, and makes them twice to hold few of them.
    is_aimed = axes["loss"] != "plain" and SOFTWARE[setting.software].aims
    todo = work_of(setting.shape, axes, axes["loss"] if is_aimed else "plain")
    fast = speed(machine.gpu, axes, setting.software, rates)
    groups = channels(machine, num_gpus, strategy == "fsdp" and axes["sharding"] == "hybrid_shard", rates)
    if todo is None or fast is None or groups is None:
        return None
    hooks = hook_ops(todo, strategy, setting.software, fast.loop, rates)
    micro = _micro_step(todo, fast, setting.usual, is_aimed, hooks, rates)
    return _update(setting, todo, fast, micro, groups, rates)


@dataclass(frozen=True, slots=True)
class Micro:
    """Seconds of the computation of one micro-step, by part."""

    tower: float
    llm: float
    head: float
    attention: float
    elementwise: float
    recompute: float
    launch: float
    """What the GPU waits for the processor that launches its operations."""
    forward: float
    """Of all these, what happens before the loss is known."""

    @property
    def total(self) -> float:
        """Return the whole micro-step."""
        return self.tower + self.llm + self.head + self.attention + self.elementwise + self.recompute + self.launch


def hook_ops(todo: Work, strategy: str, software: str, loop: Loop, rates: Rates) -> float:
    """Return what the hooks of sharded parameters cost the host in a micro-step, in operations."""
    if strategy == "zero3":
        joined = 2 * (todo.llm.num_blocks + todo.llm.num_adapted_again) if loop.joins_qkv else 0.0
        modules = (todo.llm.num_modules - joined) * _passes(todo.llm) + todo.tower.num_modules * _passes(todo.tower)
        return rates.module_ops * modules
    return rates.unit_ops * todo.num_units * 2 if strategy == "fsdp" and SOFTWARE[software].fsdp == 2 else 0.0


def _passes(part: Part) -> float:
    return 1 + part.back + part.again


@functools.lru_cache(maxsize=1 << 15)
def _micro_step(todo: Work, fast: Speed, batch: Batch, is_aimed: bool, hooks: float, rates: Rates) -> Micro:
    positions = batch.num_rows * batch.width
    logits = batch.num_supervised if is_aimed else positions
    first, back, again, llm = todo.forward, todo.backward, todo.again, todo.llm
    # Products: the roofline's two slopes, rounded off where they meet.
    passes = 1.0 + back.position / first.position
    moved = fast.number_bytes * (llm.products * positions + llm.weights) / fast.bytes_per_s
    blocks = math.hypot(
        ((first.position + back.position) * positions + first.fixed + back.fixed) / fast.llm_flops, passes * moved
    )
    per_logit = first.logit + back.logit
    moved_head = fast.number_bytes * (todo.head_products * logits + todo.head_weights) / fast.bytes_per_s
    head = math.hypot(per_logit * logits / fast.head_flops, per_logit / first.logit * moved_head)
    attention = (first.score + back.score) * batch.num_scores / fast.scores_flops
    attention += (1 + 2 * llm.back) * todo.score_bytes * batch.num_scores / fast.bytes_per_s
    elementwise = elementwise_bytes(llm, fast, todo.is_gated, True) * positions
    changed = (1 + 2 * llm.back) * elementwise + _once(todo, fast, rates) + fast.loop.logit_bytes * todo.vocab * logits
    # Recomputed.
    share = again.position / first.position
    if llm.is_selective:
        share += llm.again * fast.loop.selective_share
    recompute = share * math.hypot(first.position * positions / fast.llm_flops, moved)
    recompute += again.score * batch.num_scores / fast.scores_flops + llm.again * elementwise / fast.bytes_per_s
    tower = 0.0
    num_ops = hooks + fast.loop.num_ops * llm.num_blocks * _passes(llm)
    num_adapters = llm.num_adapters - (llm.num_adapted_again if fast.loop.joins_qkv else 0.0)
    num_ops += fast.loop.num_adapter_ops * num_adapters * (2 + llm.again)
    if batch.num_images:
        part, images = todo.tower, batch.num_images
        inverse = (1 - todo.tower_scores) / fast.tower_flops + todo.tower_scores / fast.tower_scores_flops
        tower = (first.image + back.image) * images * inverse
        patches = images * todo.num_patches
        own = elementwise_bytes(part, fast, False, False) * patches
        changed += (1 + 2 * part.back) * own
        recompute += again.image * images * inverse + part.again * own / fast.bytes_per_s
        num_ops += fast.loop.num_tower_ops * part.num_blocks * _passes(part)
        num_ops += fast.loop.num_adapter_ops * part.num_adapters * (2 + part.again)
    changed /= fast.bytes_per_s
    busy = tower + blocks + head + attention + changed + recompute
    launch = max(0.0, num_ops * rates.op_s - busy)
    forward = (busy - recompute + launch) / (passes if passes > 1.0 else 1.0)
    return Micro(tower, blocks, head, attention, changed, recompute, launch, forward)


def elementwise_bytes(part: Part, fast: Speed, is_gated: bool, is_llm: bool) -> float:
    """Return the bytes per position that elementwise operations move in the forward pass."""
    loop, wide = fast.loop, fast.stream_bytes / 2.0
    inputs = part.adapted_in - (part.adapted_again if loop.joins_qkv else 0.0)
    adapters = inputs * loop.adapter_in_bytes + part.adapted_out * loop.adapter_out_bytes
    if not is_llm:
        norm = loop.norm_bytes if part.is_rms else loop.tower_norm_bytes
        # A scale is in front of each of both additions.
        stream = part.hidden * (2 * norm + 4 * loop.residual_bytes) + part.normed * loop.norm_bytes
        inner = (part.heads + part.values) * loop.layout_bytes + part.ffn * loop.plain_bytes
        return wide * (stream + inner) + adapters
    stream = part.hidden * (2 * loop.norm_bytes + 2 * loop.residual_bytes * wide) + part.normed * loop.norm_bytes
    rotated = part.heads * loop.rope_bytes + (part.heads + part.values) * loop.layout_bytes
    inner = rotated + part.ffn * (loop.gated_bytes if is_gated else loop.plain_bytes)
    return stream + inner * fast.number_bytes / 2.0 + adapters


def _once(todo: Work, fast: Speed, rates: Rates) -> float:
    """Return the bytes that a micro-step moves whatever its size: casts, DoRA's lengths, 4-bit weights made 16 bits."""
    casts = 12.0 * todo.trained if fast.is_cast else 0.0
    unpacked = max(2.5, rates.unpack_flops * fast.bytes_per_s / fast.scalar_flops)
    casts += RENORM_BYTES * todo.renormed * (1 + todo.llm.again)
    return casts + unpacked * todo.quantised * (1 + todo.llm.back + todo.llm.again)


def _update(
    setting: Setting, todo: Work, fast: Speed, micro: Micro, groups: tuple[Channel, Channel], rates: Rates
) -> Time:
    axes, machine, batch = setting.axes, setting.machine, setting.usual
    num_gpus, steps, strategy = int(axes["gpus"]), int(axes["num_accumulation_steps"]), axes["strategy"]
    sent = _traffic(todo, axes, fast)
    backward = micro.total - micro.forward
    traded = exchange(strategy, axes["sharding"], sent, groups, micro.forward, backward, steps)
    waits = 0.0
    if num_gpus > 1:
        beside = rates.unhidden_share * (traded.total_s - traded.exposed_s)
        copies = traded.num_gathered * fast.loop.gather_copies * (todo.trained + todo.frozen) / fast.bytes_per_s
        jitter = rates.jitter_share * math.log2(num_nodes(machine, num_gpus)) * steps * micro.total
        waits = traded.exposed_s + beside + jitter
        if strategy in ("fsdp", "zero3"):
            waits += (
                copies
                + traded.num_gathered
                * fast.loop.adapter_units
                * (todo.llm.num_adapters + todo.tower.num_adapters)
                * rates.unit_s
            )
    optimizer = _optimizer(todo, axes, fast, rates, machine.gpus_per_node)
    moved = _offloaded(todo, axes, sent, rates)
    step = steps * micro.total + waits + optimizer + moved
    read = steps * batch.num_images * todo.image_area * rates.image_s / rates.num_threads
    data = max(0.0, read - step)

    def detail() -> tuple[Seconds, ...]:
        return explained(setting, todo, fast, micro, traded, (waits, optimizer, moved, data))

    return Time(step + data, batch.num_real * steps * num_gpus, detail)


def _traffic(todo: Work, axes: Mapping[str, Any], fast: Speed) -> Traffic:
    strategy, precision = axes["strategy"], axes["precision"]
    numbers, trained = todo.trained + todo.adapters + todo.frozen, todo.trained + todo.adapters
    wide = precision in WIDE or (precision != PURE and strategy in ("ddp", "fsdp") and fast.loop.reduces_fp32)
    return Traffic(
        weights=fast.number_bytes * numbers + FOUR_BITS * todo.quantised,
        gradients=(4.0 if wide else 2.0) * trained,
        updated=fast.number_bytes * trained,
        first=fast.number_bytes * todo.largest_unit,
        num_units=todo.num_units,
    )


def _optimizer(todo: Work, axes: Mapping[str, Any], fast: Speed, rates: Rates, gpus_per_node: int) -> float:
    """Return the seconds of the sums over micro-steps, clipping and the update."""
    num_gpus, strategy, name = int(axes["gpus"]), axes["strategy"], axes["optimizer"]
    own = (todo.trained + todo.adapters) / (num_gpus if strategy in SHARDED else 1)
    number = 2.0 if axes["precision"] == PURE else 4.0
    if axes["offload"] != "none":
        neighbours = min(num_gpus, gpus_per_node)
        return own * ADAMW_ACCESSES["adamw_fused"] * 4.0 * neighbours / rates.host_bytes_per_s
    accesses = ADAMW_ACCESSES.get(name)
    update = accesses * number if accesses else 3 * number + 4.0
    summed = todo.trained + todo.adapters if strategy in ("single", "ddp", "zero1") else own
    sums = (int(axes["num_accumulation_steps"]) - 1) * SUM_ACCESSES * number * summed
    return (own * (update + CLIP_ACCESSES * number) + sums) / fast.streamed_bytes_per_s


def _offloaded(todo: Work, axes: Mapping[str, Any], sent: Traffic, rates: Rates) -> float:
    """Return the seconds of copies between host and GPU, which nothing hides."""
    if axes["offload"] == "none":
        return 0.0
    num_gpus, steps = int(axes["gpus"]), int(axes["num_accumulation_steps"])
    own = (sent.weights + sent.gradients) / num_gpus if axes["offload"] == "parameters" else 0.0
    updated = (sent.gradients + sent.updated) / num_gpus
    return (2 * own * steps + updated) / rates.host_link_bytes_per_s


def scaled(setting: Setting, num_gpus: int) -> Setting:
    """Return the same cell on so many GPUs, each with the same micro-batch."""
    return dataclasses.replace(setting, axes={**setting.axes, "gpus": num_gpus})


def explained(
    setting: Setting, todo: Work, fast: Speed, micro: Micro, traded: Exchange, rest: tuple[float, ...]
) -> tuple[Seconds, ...]:
    """Return every part with its formula in words and figures."""
    steps, batch = int(setting.axes["num_accumulation_steps"]), setting.usual
    positions = batch.num_rows * batch.width
    tera = 1e12
    waits, optimizer, moved, data = rest
    first, back = todo.forward, todo.backward

    def products(flops: float, rate: float) -> str:
        return f"{steps} x {flops / tera:.3g} TFLOP at {rate / tera:.3g} TFLOP/s, or their bytes"

    pictures = (first.image + back.image) * batch.num_images
    scores = (first.score + back.score) * batch.num_scores
    return (
        Seconds("tower", steps * micro.tower, products(pictures, fast.tower_flops)),
        Seconds("llm", steps * micro.llm, products((first.position + back.position) * positions, fast.llm_flops)),
        Seconds("head", steps * micro.head, products((first.logit + back.logit) * positions, fast.head_flops)),
        Seconds("attention", steps * micro.attention, products(scores, fast.scores_flops)),
        Seconds(
            "elementwise", steps * micro.elementwise,
            f"{steps} x {micro.elementwise * fast.bytes_per_s / 1e9:.3g} GB at {fast.bytes_per_s / 1e9:.4g} GB/s",
        ),
        Seconds("recompute", steps * micro.recompute, "what checkpointing repeats of all these, at the same rates"),
        Seconds("launch", steps * micro.launch, "what launching the operations takes beyond computing them"),
        Seconds("optimizer", optimizer, "sums, clipping, update: bytes of weights, gradients, moments over bandwidth"),
        Seconds("offload", moved, "copies between host and GPU"),
        Seconds(
            "exposed communication", waits,
            f"{traded.exposed_s:.3g} s of {traded.total_s:.3g} s are not hidden; the rest slows the computation",
        ),
        Seconds("data", data, f"{batch.num_images:.3g} images a micro-step, beyond what the step hides"),
    )  # fmt: skip
