"""The time of answering: encoding images, prefill, and one decoding step, from shapes, weight format and batch.

A decoding step reads every weight once, and the keys and values of every row: it is bound by bandwidth until the batch
is large, unless an eager runtime cannot launch its operations that fast. Prefill and encoding are bound by products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from egobench.hardware import Gpu
from egobench.predict.rates import DEFAULT, Loop, Rates, loop_of
from egobench.predict.shapes import ModelShape
from egobench.predict.time import Speed, elementwise_bytes, speed
from egobench.predict.work import Work, work_of
from egobench.spec.axes import AXES

Format = Literal["fp16", "bf16", "int8", "int4"]
Runtime = Literal["eager", "compiled"]
"""`eager` launches every operation from Python; `compiled` replays a graph, as servers do."""
WEIGHT_BYTES: Final[dict[str, float]] = {"fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.53}
"""Of a number of the blocks, scales of groups of 128 included; the head stays in 16 bits."""
READ_FRACTION: Final = 0.78
"""Of the memory's bandwidth, by a product with few rows. Fitted, as the next two, on torchao (A100) and TinyChat
(A6000, RTX 4090, Orin)."""
BLOCK_S: Final[dict[str, float]] = {"fp16": 10e-6, "bf16": 10e-6, "int8": 35e-6, "int4": 35e-6}
"""Seconds of a block in which its few small kernels begin and end, and the memory is idle."""
UNPACK_FLOPS: Final = 8.0
"""Scalar operations that unpack and scale a 4-bit number, at the fp32 peak: an A100's fp32 units are slow for its
bandwidth."""
DECODE_OPS: Final = 50.0
"""Operations of a block in a decoding step, the cache's included."""
INT4_PRODUCTS: Final = 0.45
"""Of the speed of 16-bit products, by large products that unpack 4-bit weights. Source: AutoAWQ's prefill."""


@dataclass(frozen=True)
class Request:
    """What is answered at once."""

    num_rows: int
    prompt: float
    """Positions of a row when decoding begins, image tokens included."""
    num_images: float = 0.0
    """In all rows."""
    num_new: float = 0.0
    """Tokens that are made in each row."""


@dataclass(frozen=True)
class Answering:
    """The parts of a request's time."""

    encode_s: float
    prefill_s: float
    decode_s: float
    """Of one step, halfway through the new tokens."""
    num_rows: int
    num_new: float

    @property
    def decode_tokens_per_s(self) -> float:
        """Return the tokens of all rows."""
        return self.num_rows / self.decode_s

    @property
    def request_s(self) -> float:
        """Return the whole request; the first token comes out of the prefill."""
        return self.encode_s + self.prefill_s + max(0.0, self.num_new - 1) * self.decode_s


def predict_inference(
    shape: ModelShape, gpu: Gpu, request: Request, *, weights: Format = "bf16", runtime: Runtime = "eager",
    rates: Rates = DEFAULT,
) -> Answering | None:  # fmt: skip
    """Return the time of a request; None where the GPU's peak is not known."""
    axes = {name: axis.default for name, axis in AXES.items()} | {
        "precision": "fp16" if weights == "fp16" else "bf16_pure",
        "compile": "off" if runtime == "eager" else "whole",
    }
    todo, fast = work_of(shape, axes, "plain"), speed(gpu, axes, "egobench", rates)
    if todo is None or fast is None:
        return None
    loop = loop_of("egobench", str(axes["compile"]))
    return Answering(
        encode_s=_encode(todo, fast, loop, request, runtime, rates) if request.num_images else 0.0,
        prefill_s=_prefill(todo, fast, loop, request, weights, runtime, rates),
        decode_s=_decode(shape, todo, fast, gpu, request, weights, runtime, rates),
        num_rows=request.num_rows,
        num_new=request.num_new,
    )


def _encode(todo: Work, fast: Speed, loop: Loop, request: Request, runtime: Runtime, rates: Rates) -> float:
    """Return the seconds of the tower and the projector."""
    images, part = request.num_images, todo.tower
    inverse = (1 - todo.tower_scores) / fast.tower_flops + todo.tower_scores / fast.tower_scores_flops
    moved = elementwise_bytes(part, fast, False, False) * images * todo.num_patches
    busy = todo.forward.image * images * inverse + (moved + 2.0 * part.weights) / fast.bytes_per_s
    return max(busy, _launched(loop.num_tower_ops * part.num_blocks, runtime, rates))


def _prefill(
    todo: Work, fast: Speed, loop: Loop, request: Request, weights: Format, runtime: Runtime, rates: Rates
) -> float:
    positions, part = request.num_rows * request.prompt, todo.llm
    share = INT4_PRODUCTS if weights == "int4" else 1.0
    read = (2.0 * part.products * positions + WEIGHT_BYTES[weights] * part.weights) / fast.bytes_per_s
    products = math.hypot(todo.forward.position * positions / (fast.llm_flops * share), read)
    head = todo.forward.logit * request.num_rows / fast.head_flops + 2.0 * todo.head_weights / fast.bytes_per_s
    attention = todo.forward.score * request.num_rows * request.prompt**2 / fast.scores_flops
    moved = elementwise_bytes(part, fast, todo.is_gated, True) * positions / fast.bytes_per_s
    return max(products + head + attention + moved, _launched(loop.num_ops * part.num_blocks, runtime, rates))


def _decode(
    shape: ModelShape, todo: Work, fast: Speed, gpu: Gpu, request: Request, weights: Format, runtime: Runtime,
    rates: Rates,
) -> float:  # fmt: skip
    llm, rows = shape.llm, request.num_rows
    bandwidth = gpu.bandwidth_bytes_per_s
    read = WEIGHT_BYTES[weights] * todo.llm.weights / (READ_FRACTION * bandwidth)
    if weights == "int4":
        read = math.hypot(read, UNPACK_FLOPS * todo.llm.weights / (gpu.peak("fp32") or math.inf))
    read += 2.0 * todo.head_weights / (READ_FRACTION * bandwidth)
    products = math.hypot(read, (todo.forward.position + todo.forward.logit) * rows / fast.llm_flops)
    width = 2.0 * llm.kv_heads * llm.head_dim * llm.layers
    cache = 2.0 * width * rows * (request.prompt + request.num_new / 2) / (READ_FRACTION * bandwidth)
    moved = elementwise_bytes(todo.llm, fast, todo.is_gated, True) * rows / fast.bytes_per_s
    busy = products + cache + moved + BLOCK_S[weights] * llm.layers
    return max(busy, _launched(DECODE_OPS * llm.layers, runtime, rates))


def _launched(num_ops: float, runtime: Runtime, rates: Rates) -> float:
    return num_ops * rates.op_s if runtime == "eager" else 0.0
