"""What autograd keeps of one block, and what its backward pass needs for a moment: bytes per position.

Every number is counted from what the operators of a block save: a product its input where its weight is trained, a
norm its input, SwiGLU three tensors, attention its queries, keys, values and output. What comes on top while a block
goes back (its gradients) is counted at the feed-forward network, where it is largest, or at attention's scores.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from egobench.predict.formats import Formats
from egobench.predict.shapes import LlmShape, TowerShape
from egobench.predict.trained import Training

EAGER: Final = "eager"
FLASH: Final = "flash"
"""Any kernel that keeps no scores."""


@dataclass(frozen=True)
class How:
    """What changes what a block keeps, beside its shape and what is trained of it."""

    form: Formats
    attention: str
    """`eager` or `flash`."""
    checkpointing: str
    is_compiled: bool
    saves_inputs: bool
    """Every product keeps its input, also where its weight is frozen."""
    repeats_kv: bool
    upcasts_norms: bool
    casts_inputs: bool
    selects_half: bool
    joins_qkv: bool
    drops_inputs: bool


@dataclass(frozen=True)
class Saved:
    """Bytes of one block, per position, and per score of one head."""

    attention: float = 0.0
    network: float = 0.0
    """The feed-forward network."""
    scores: float = 0.0
    work: float = 0.0
    """Gradients while the network goes back."""
    scores_work: float = 0.0
    """The same for attention's scores."""
    selective: float = 0.0
    """Kept where only products and attention are."""
    shared: float = 0.0
    """Of that, what the recomputed block would keep anyway."""
    selective_scores: float = 0.0

    @property
    def whole(self) -> float:
        """Return what one position keeps."""
        return self.attention + self.network


KEEPS_NOTHING: Final = Saved()


def _read(width: int, readers: Sequence[Training], how: How, is_wide: bool, is_kept: bool = False) -> float:
    """Return the bytes that products keep of an input that they share; `is_wide`: it is fp32 under autocast."""
    form = how.form
    weights = sum(one.weight or how.saves_inputs for one in readers)
    adapters = sum(one.rank > 0 for one in readers)
    if adapters and how.drops_inputs:  # each has a copy of its own, and a mask
        copies = 1 if how.joins_qkv and len(readers) == 3 else adapters  # of queries, keys and values
        return float(copies * width * (form.compute + 1) + form.compute * width * bool(weights and not is_kept))
    if form.is_autocast and is_wide and how.is_compiled:  # one cast for all of them
        return float(form.compute * width * bool(weights or adapters))
    if form.is_autocast and is_wide:
        return float(form.compute * width * (weights + adapters))
    shares = weights or (adapters and not how.casts_inputs)
    own = form.compute * width if shares and not is_kept else 0
    if how.casts_inputs and form.adapter > form.compute:
        own += adapters * width * (form.compute if form.is_autocast else form.adapter)
    return float(own)


def _adapters(readers: Sequence[Training], outputs: Sequence[int], how: How) -> float:
    """Return what the products of adapters keep: their rank, and DoRA both outputs that it scales."""
    wide = how.form.compute
    return float(sum(wide * (one.rank + 2 * out * one.is_dora) for one, out in zip(readers, outputs, strict=True)))


def norm(width: int, is_trained: bool, needs: bool, how: How, is_rms: bool, number: int) -> float:
    """Return what a norm keeps: its input (RMSNorm as transformers writes it: an fp32 copy), and the normalised one.

    `number`: bytes of a number of its input.
    """
    if not needs:
        return 0.0
    if not is_rms or how.is_compiled or not how.upcasts_norms:
        return float(width * (4 if how.form.is_autocast and not how.is_compiled else number))
    return float(4 * width + (number * width if is_trained else 0))


def _scores(part: TowerShape | LlmShape, how: How) -> tuple[float, float]:
    """Return (kept, while going back) of eager attention per score of one head.

    The LLM makes its softmax in fp32 and casts it; so does autocast on a GPU. Without, the tower's is 16 bits.
    """
    if how.attention != EAGER:
        return 0.0, 0.0
    wide = how.form.compute
    if wide == 4 or (isinstance(part, TowerShape) and not how.form.is_autocast):
        return part.heads * float(wide), part.heads * 2.0 * wide
    return part.heads * (4.0 + wide), part.heads * 8.0


@functools.lru_cache(maxsize=16384)
def block(
    part: TowerShape | LlmShape, trainings: tuple[Training, ...], is_norm_trained: bool, has_graph: bool, how: How
) -> Saved:
    """Return what one block keeps; `has_graph`: its input has a gradient."""
    needs = has_graph or is_norm_trained or any(one.is_any for one in trainings)
    if not needs:
        return KEEPS_NOTHING
    attention = _attention(part, trainings[:4], is_norm_trained, has_graph, how)
    network = _network(part, trainings[4:], is_norm_trained, how)
    kept, work = _scores(part, how)
    form, hidden, ffn = how.form, part.hidden, part.ffn
    is_gated = isinstance(part, LlmShape) and part.is_gated
    keys = part.kv_heads * part.head_dim if isinstance(part, LlmShape) else hidden
    width = part.attention_width
    shared = form.compute * (width + keys + ffn * (1 if how.selects_half or not is_gated else 2))
    return Saved(
        attention=attention,
        network=network,
        scores=kept,
        # SwiGLU: the gradient of the product and of both its factors; GELU: of its output and of its input.
        work=form.compute * ffn * (3 if is_gated else 2) + 2 * form.stream * hidden,
        scores_work=work,
        selective=_products(part, trainings, is_norm_trained, how) + form.stream * hidden,
        shared=shared,
        selective_scores=part.heads * float(form.compute) if how.attention == EAGER else 0.0,
    )


def _products(part: TowerShape | LlmShape, trainings: Sequence[Training], is_norm_trained: bool, how: How) -> float:
    """Return what the products of a block, those of its adapters among them, and attention return."""
    outputs = [matrix.outputs for matrix in part.matrices().values()]
    numbers = [out + bool(one.rank) * (one.rank + out) for one, out in zip(trainings, outputs, strict=True)]
    if how.is_compiled and (isinstance(part, LlmShape) or not is_norm_trained):
        # The last ones are only added to the stream: a compiler sees that nothing reads them, unless it is a trained
        # layer scale.
        numbers[-1] = trainings[-1].rank
    if how.selects_half:
        numbers = numbers[::2]
    return float(how.form.compute * (sum(numbers) + part.attention_width) + 4 * part.heads)


def _attention(
    part: TowerShape | LlmShape, trainings: Sequence[Training], is_norm_trained: bool, has_graph: bool, how: How
) -> float:
    is_llm, form, hidden = isinstance(part, LlmShape), how.form, part.hidden
    keys = part.kv_heads * part.head_dim if isinstance(part, LlmShape) else hidden
    width, wide = part.attention_width, form.stream == 4
    saved = norm(hidden, is_norm_trained, has_graph or is_norm_trained, how, part.is_rms, form.stream)
    if part.has_qk_norm:
        needs = has_graph or is_norm_trained or any(one.is_any for one in trainings[:2])
        saved += norm(width + keys, is_norm_trained, needs, how, True, form.compute)
    repeated = width if how.repeats_kv or (how.attention == EAGER and is_llm) else keys
    saved += form.compute * (width + 2 * repeated) + 4 * part.heads
    if how.joins_qkv and is_llm:
        adapted = [out for one, out in zip(trainings[:3], (width, keys, keys), strict=True) if one.rank]
        if len(adapted) < 3:
            saved += form.compute * sum(adapted)
        if keys == width:  # not repeated
            saved += form.compute * (width + keys)
    is_kept = how.attention != EAGER
    saved += form.compute * width * is_kept  # attention keeps its output
    saved += _read(hidden, trainings[:3], how, wide)
    saved += _read(width, trainings[3:], how, False, is_kept)
    if not is_llm:
        saved += form.compute * hidden * is_norm_trained  # the layer scale keeps what it scales
    return saved + _adapters(trainings, (width, keys, keys, hidden), how)


def _network(part: TowerShape | LlmShape, trainings: Sequence[Training], is_norm_trained: bool, how: How) -> float:
    form, hidden, ffn = how.form, part.hidden, part.ffn
    is_gated = isinstance(part, LlmShape) and part.is_gated
    number = form.stream
    if how.is_compiled:  # the stream is added up again, from what attention adds to it: a trained layer scale has that
        number = form.compute if isinstance(part, LlmShape) or not is_norm_trained else 0
    saved = norm(hidden, is_norm_trained, True, how, part.is_rms, number)
    inner = 2 if is_gated else 1
    # Gate, its SiLU, and up; a compiler computes the SiLU again. GELU keeps its input.
    saved += form.compute * ffn * (2 if is_gated and how.is_compiled else 3 if is_gated else 1)
    saved += _read(hidden, trainings[:inner], how, form.stream == 4)
    saved += _read(ffn, trainings[inner:], how, False)
    if not isinstance(part, LlmShape):
        saved += form.compute * hidden * is_norm_trained
    outputs = (ffn, ffn, hidden) if is_gated else (ffn, hidden)
    return saved + _adapters(trainings, outputs, how)
