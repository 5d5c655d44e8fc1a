"""How much a micro-step has to do, as linear functions of its batch: products, scores, bytes, operations.

All of it follows from the model, the method and a few axes, so it is counted once for all cells that share them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from egobench.predict.flops import Cost, Execution, Flops, execution_by, flops
from egobench.predict.shapes import HEAD, LLM, PROJECTOR, TOWER, ModelShape
from egobench.predict.trained import ADAPTED, Recompute, Trained, trained_by
from egobench.spec.axes import SAME

AXES: Final = (
    "method", "projector", "lora_rank", "lora_targets", "checkpointing", "vision_checkpointing", "attention",
    "vision_attention", "loss", "precision",
)  # fmt: skip
"""What the work depends on, beside the shape."""
SELECTIVE: Final = "selective"
KEPT: Final = {"checkpointing": "none", "vision_checkpointing": "none"}


@dataclass(frozen=True, slots=True)
class Pass:
    """FLOPs of one direction, per image, position, score and logit, and once a micro-step."""

    image: float
    position: float
    score: float
    logit: float
    fixed: float


@dataclass(frozen=True, slots=True)
class Part:
    """What a stack of blocks moves, in numbers per position, summed over its blocks."""

    products: float
    """Numbers that its matrices read and write."""
    weights: float
    """Numbers of its matrices, once a micro-step."""
    hidden: float
    """Hidden size, summed over blocks."""
    normed: float
    """Width of queries and keys that are normalised."""
    heads: float
    """Width of queries and keys."""
    values: float
    """Width of values."""
    ffn: float
    adapted_in: float
    adapted_out: float
    adapted_again: float
    """Of the inputs, those of keys and values, which read what queries read."""
    num_blocks: float
    num_adapters: float
    num_adapted_again: float
    """Of the adapters, those of keys and values."""
    num_modules: float
    """Modules with parameters of their own: matrices, two norms a block, two for every adapter."""
    back: float
    """Share of the blocks that anything goes back through."""
    again: float
    """Share of the blocks whose elementwise operations are recomputed."""
    is_selective: bool
    """What products made is kept."""
    is_rms: bool


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What a micro-step has to do; made once for all cells that do the same, and told apart by identity."""

    forward: Pass
    backward: Pass
    again: Pass
    """Recomputed because of checkpointing."""
    llm: Part
    tower: Part
    tower_scores: float
    """Share of the tower's FLOPs that is attention."""
    head_products: float
    head_weights: float
    score_bytes: float
    """Of one query-key pair over all heads and blocks of the LLM, where scores are written out; else 0."""
    vocab: float
    num_patches: float
    """Positions of the tower per image."""
    image_area: float
    """Of an image, over that of 448 x 448 pixels."""
    is_gated: bool
    trained: float
    """Numbers that are trained whole."""
    adapters: float
    frozen: float
    quantised: float
    """Frozen numbers in 4 bits."""
    renormed: float
    """Numbers of matrices whose rows DoRA measures in every forward pass."""
    num_units: float
    """Blocks that a sharded model is gathered by."""
    largest_unit: float
    """Numbers of the embedding, which is gathered before anything can hide it."""


@functools.lru_cache(maxsize=4096)
def _work(shape: ModelShape, values: tuple[Any, ...]) -> Work | None:
    axes = dict(zip(AXES, values, strict=True))
    trained = trained_by(shape, axes)
    if trained is None:
        return None
    how = execution_by(shape, axes)
    once = _once(shape, tuple(KEPT.get(name, value) for name, value in axes.items()))
    whole = once if set(how.recomputed.llm + how.recomputed.tower) <= {"none"} else flops(shape, trained, how)
    llm, tower = _parts(shape, trained, how, axes)
    counts = _numbers(shape, trained, axes)
    head = shape.llm.head
    return Work(
        forward=_pass(once.forward),
        backward=_pass(once.backward + once.repeated),
        again=_pass(whole.repeated + once.repeated * -1),
        llm=llm,
        tower=tower,
        tower_scores=_tower_scores(shape),
        head_products=head.inputs + head.outputs,
        head_weights=head.inputs * head.outputs,
        score_bytes=24.0 * shape.llm.heads * shape.llm.layers if axes["attention"] == "eager" else 0.0,
        vocab=shape.llm.vocab,
        num_patches=shape.tower.num_positions,
        image_area=(shape.tower.image_px / 448) ** 2,
        is_gated=shape.llm.is_gated,
        num_units=shape.llm.layers + shape.tower.layers + 2,
        largest_unit=float(head.inputs * head.outputs),
        **counts,
    )


@functools.lru_cache(maxsize=1024)
def _once(shape: ModelShape, values: tuple[Any, ...]) -> Flops:
    """Return the FLOPs without any recomputation."""
    axes = dict(zip(AXES, values, strict=True))
    trained = trained_by(shape, axes)
    assert trained is not None
    return flops(shape, trained, execution_by(shape, axes))


def work_of(shape: ModelShape, axes: Mapping[str, Any], loss: str) -> Work | None:
    """Return the work of a cell whose loss repeats what `loss` says; None for a method that is not known here."""
    method, attention, own = axes["method"], axes["attention"], axes["vision_attention"]
    rank, targets = (axes["lora_rank"], axes["lora_targets"]) if method in ADAPTED else (0, "")
    checkpointing, vision = axes["checkpointing"], axes["vision_checkpointing"]
    # Values that do the same work are one, so that few combinations have to be counted.
    return _work(
        shape,
        (
            method, axes["projector"], rank, targets, checkpointing,
            checkpointing if vision == SAME else vision, _kernel(attention),
            _kernel(attention if own == SAME else own), loss, "fp8" if axes["precision"] == "fp8" else "",
        ),
    )  # fmt: skip


def _kernel(attention: str) -> str:
    return attention if attention == "eager" else "fused"


def _pass(cost: Cost) -> Pass:
    return Pass(cost.image, cost.position, cost.score, cost.logit, cost.fixed)


def _parts(shape: ModelShape, trained: Trained, how: Execution, axes: Mapping[str, Any]) -> tuple[Part, Part]:
    first = _first_trained(shape, trained)
    below = f"{LLM}.embed_tokens" in trained.others or PROJECTOR in trained.others or first[0] is not None
    begin = 0 if below else first[1]
    back = 0 if begin is None else shape.llm.layers - begin
    tower_back = 0 if first[0] is None else shape.tower.layers - first[0]
    return (
        _part(shape, trained, LLM, back, how.recomputed.llm, axes["checkpointing"] == SELECTIVE),
        _part(shape, trained, TOWER, tower_back, how.recomputed.tower, axes["vision_checkpointing"] == SELECTIVE),
    )


def _first_trained(shape: ModelShape, trained: Trained) -> tuple[int | None, int | None]:
    """Return the first block of tower and LLM that is trained."""
    names = {name for name, training in trained.matrices.items() if training.is_any} | trained.others
    found: list[int | None] = []
    for part in (shape.tower, shape.llm):
        blocks = (index for index in range(part.layers) if any(_is_in(name, part.block(index)) for name in names))
        found.append(next(blocks, None))
    return found[0], found[1]


def _is_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _part(
    shape: ModelShape, trained: Trained, name: str, num_back: int, recomputed: tuple[Recompute, ...], is_selective: bool
) -> Part:
    part = shape.llm if name == LLM else shape.tower
    layers, matrices = part.layers, part.matrices().values()
    adapted = {
        own: matrix for own, matrix in shape.matrices().items() if own.startswith(f"{name}.") and trained.of(own).rank
    }
    num_again = sum(own.endswith((".k_proj", ".v_proj")) for own in adapted)
    again = num_back if is_selective else sum(one == "full" for one in recomputed[layers - num_back :])
    keys = shape.llm.kv_heads * shape.llm.head_dim if name == LLM else shape.tower.hidden
    return Part(
        products=layers * sum(one.inputs + one.outputs for one in matrices),
        weights=layers * sum(one.inputs * one.outputs for one in matrices),
        hidden=layers * part.hidden,
        normed=layers * (part.attention_width + keys) * part.has_qk_norm,
        heads=layers * (part.attention_width + keys),
        values=layers * keys,
        ffn=layers * part.ffn,
        adapted_in=sum(one.inputs for one in adapted.values()),
        adapted_out=sum(one.outputs for one in adapted.values()),
        adapted_again=part.hidden * num_again,
        num_blocks=layers,
        num_adapters=len(adapted),
        num_adapted_again=num_again,
        num_modules=layers * (len(part.matrices()) + 2) + 2 * len(adapted),
        back=num_back / layers if layers else 0.0,
        again=again / layers if layers else 0.0,
        is_selective=is_selective,
        is_rms=part.is_rms,
    )


def _tower_scores(shape: ModelShape) -> float:
    tower = shape.tower
    if not tower.layers:
        return 0.0
    scores = 4.0 * tower.num_positions * tower.attention_width
    return scores / (scores + sum(matrix.flops for matrix in tower.matrices().values()))


def _numbers(shape: ModelShape, trained: Trained, axes: Mapping[str, Any]) -> dict[str, float]:
    """Count what is trained, added, frozen and quantised; norms and biases are left out."""
    found = {"trained": 0.0, "adapters": 0.0, "frozen": 0.0, "quantised": 0.0, "renormed": 0.0}
    is_quantised = axes["method"] == "qlora"
    for name, matrix in shape.matrices().items():
        training, size = trained.of(name), float(matrix.inputs * matrix.outputs)
        found["renormed"] += size * training.is_dora
        found["adapters"] += training.rank * (matrix.inputs + matrix.outputs)
        if training.weight:
            found["trained"] += size
        elif is_quantised and name != HEAD and name.startswith(f"{LLM}."):
            found["quantised"] += size
        else:
            found["frozen"] += size
    if not shape.llm.is_tied:
        embedding = float(shape.llm.vocab * shape.llm.hidden)
        found["trained" if f"{LLM}.embed_tokens" in trained.others else "frozen"] += embedding
    return found
