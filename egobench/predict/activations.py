"""What autograd keeps of a micro-batch: all blocks of tower and LLM, projector and head; bytes per position."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from egobench.predict.block import EAGER, KEEPS_NOTHING, How, Saved, block, norm
from egobench.predict.shapes import HEAD, LLM, PROJECTOR, TOWER, LlmShape, ModelShape, TowerShape
from egobench.predict.trained import STEPS, Trained, Training, trained_by


@dataclass(frozen=True)
class Part:
    """All blocks of the LLM, or of the tower: per position and per score."""

    kept: float = 0.0
    kept_scores: float = 0.0
    aimed: float = 0.0
    """Of the last block, what it keeps at supervised positions only."""
    last: float = 0.0
    """Beyond what is kept, while the feed-forward network of the last block goes back."""
    last_scores: float = 0.0
    last_aimed: float = 0.0
    last_attention: float = 0.0
    """The same while its attention goes back; not counted where it keeps no scores, for then it is less."""
    last_attention_scores: float = 0.0
    earlier: float = 0.0
    """Where the last block is kept: beyond what is kept, while the last one that is computed again goes back."""
    earlier_scores: float = 0.0
    earlier_attention: float = 0.0
    earlier_attention_scores: float = 0.0
    first: float = 0.0
    """All that the first block that goes back needs, its checkpoint included."""
    first_scores: float = 0.0
    first_attention: float = 0.0
    first_attention_scores: float = 0.0
    forward: float = 0.0
    """While a block that keeps nothing goes forward."""
    forward_scores: float = 0.0
    streams: float = 0.0
    """One residual stream for every block."""
    goes_back: bool = False


NOTHING: Final = Part()


def _is_recomputed(checkpointing: str, index: int) -> bool:
    step = STEPS.get(checkpointing)
    return step is not None and index % step == 0


Needed = tuple[float, float, float, float]
"""Per position and per score, while a block's network goes back; the same of its attention."""


def _last_recomputed(blocks: Sequence[tuple[float, float, Needed]], step: int) -> Needed:
    """Return what the last block that is computed again needs beyond all that is kept, where blocks above it are kept.

    `blocks`: of each what it keeps, per position and per score, and what it needs.
    """
    freed = freed_scores = 0.0
    for own, own_scores, needed in reversed(blocks[-step:]):
        network, scores, attention, attention_scores = needed
        if freed and network > freed:
            return network - freed, scores - freed_scores, attention - freed, attention_scores - freed_scores
        freed, freed_scores = freed + own, freed_scores + own_scores
    return 0.0, 0.0, 0.0, 0.0


Pattern = tuple[tuple[Training, ...], bool]
"""What is trained of a block: its matrices, and its norms."""


@functools.lru_cache(maxsize=4096)
def _patterns(shape: ModelShape, method: Method, is_llm: bool) -> tuple[Pattern, ...]:
    part, trained = shape.llm if is_llm else shape.tower, trained_of(shape, *method)
    own = tuple(part.matrices())
    names = [part.block(index) for index in range(part.layers)]
    return tuple((tuple(trained.of(f"{name}.{each}") for each in own), name in trained.others) for name in names)


def _blocks(
    part: TowerShape | LlmShape, patterns: tuple[Pattern, ...], has_graph: bool, how: How, is_aimed: bool
) -> Part:
    """Add up the blocks from the first one up."""
    known: dict[tuple[Pattern, bool], Saved] = {}
    kept = scores = streams = aimed = last_aimed = 0.0
    first = (0.0, 0.0, 0.0, 0.0)
    backward: list[tuple[float, float, Needed]] = []
    stream = float(how.form.stream * part.hidden)
    goes_back = False
    for index, pattern in enumerate(patterns):
        saved = known.get((pattern, has_graph)) or block(part, *pattern, has_graph, how)
        known[pattern, has_graph] = saved
        has_graph = has_graph or saved is not KEEPS_NOTHING
        if not has_graph:
            continue
        is_last, streams = index == part.layers - 1, streams + stream
        network_elsewhere = is_last and is_aimed
        if _is_recomputed(how.checkpointing, index):
            # A stream that the norm would keep is the checkpoint itself.
            is_same = how.form.stream == 4 or not how.upcasts_norms or how.is_compiled
            own, own_scores = stream, 0.0
            extra, extra_scores = saved.attention - (stream if is_same else 0.0), saved.scores
            network = saved.network
        elif how.checkpointing == "selective":
            own, own_scores = saved.selective, saved.selective_scores
            extra, extra_scores = max(0.0, saved.attention - saved.shared), saved.scores
            network = saved.network
        else:
            own, own_scores = saved.attention, saved.scores
            extra = extra_scores = network = 0.0
            if network_elsewhere:
                aimed += saved.network
            else:
                own += saved.network
        kept, scores = kept + own, scores + own_scores
        beside = network + saved.work
        if network_elsewhere:
            last_aimed, beside = beside, 0.0
        # Of attention's moment: its queries, keys, values and output have gradients too.
        around = extra + 4.0 * how.form.compute * part.attention_width
        needed = (extra + beside, extra_scores, around, extra_scores + saved.scores_work)
        backward.append((own, own_scores, needed))
        if not goes_back:
            first = (own + needed[0], own_scores + needed[1], own + around, own_scores + needed[3])
            goes_back = True
    last = backward[-1][2] if backward else (0.0, 0.0, 0.0, 0.0)
    earlier = _last_recomputed(backward, STEPS.get(how.checkpointing, 1))
    wide, kernel = how.form.compute, (part.heads * (4.0 + 2 * how.form.compute) if how.attention == EAGER else 0.0)
    return Part(
        kept, scores, aimed, last[0], last[1], last_aimed, last[2], last[3], *earlier, *first, streams=streams,
        goes_back=goes_back,
        forward=wide * 2 * part.ffn + 3.0 * how.form.stream * part.hidden, forward_scores=kernel,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def trained_of(shape: ModelShape, method: str, projector: str, rank: int, targets: str) -> Trained:
    """Return what a method trains."""
    axes = {"method": method, "projector": projector, "lora_rank": rank, "lora_targets": targets}
    found = trained_by(shape, axes)
    assert found is not None, method
    return found


Method = tuple[str, str, int, str]
"""Method, projector, rank and targets: what decides what is trained."""


@functools.lru_cache(maxsize=16384)
def tower_part(shape: ModelShape, method: Method, how: How) -> Part:
    """Return what the tower keeps per position; its scores are one head's, of one image."""
    if not shape.tower.layers:
        return NOTHING
    has_graph = f"{TOWER}.embeddings" in trained_of(shape, *method).others
    return _blocks(shape.tower, _patterns(shape, method, False), has_graph, how, is_aimed=False)


@functools.lru_cache(maxsize=16384)
def llm_part(shape: ModelShape, method: Method, how: How, is_aimed: bool) -> Part:
    """Return what the LLM's blocks keep per position."""
    return _blocks(shape.llm, _patterns(shape, method, True), _reaches_llm(shape, method), how, is_aimed)


@functools.lru_cache(maxsize=4096)
def _reaches_llm(shape: ModelShape, method: Method) -> bool:
    """Tell whether the input of the LLM's first block has a gradient."""
    trained = trained_of(shape, *method)
    parts = (PROJECTOR, f"{LLM}.embed_tokens")
    below = any(norms or any(each.is_any for each in matrices) for matrices, norms in _patterns(shape, method, False))
    return below or any(part in trained.others for part in parts)


@functools.lru_cache(maxsize=16384)
def projector_kept(shape: ModelShape, method: Method, how: How, has_graph: bool) -> float:
    """Return what the projector keeps per image."""
    trained = trained_of(shape, *method)
    if not shape.tower.layers or not (has_graph or PROJECTOR in trained.others):
        return 0.0
    gathered, hidden, wide = int(shape.tower.hidden / shape.downsample_ratio**2), shape.llm.hidden, how.form.compute
    is_trained = PROJECTOR in trained.others
    # The norm's input and output, what GELU reads, and what it makes.
    per = how.form.stream * gathered + wide * (gathered * is_trained + hidden + hidden * is_trained)
    return float(shape.num_image_tokens * per)


@functools.lru_cache(maxsize=16384)
def head_kept(shape: ModelShape, method: Method, how: How) -> float:
    """Return what the last norm keeps per position, and the head of its output."""
    trained = trained_of(shape, *method)
    hidden, form = shape.llm.hidden, how.form
    saved = norm(hidden, f"{LLM}.norm" in trained.others, True, how, shape.llm.is_rms, how.form.stream)
    return saved + (form.compute * hidden if trained.of(HEAD).weight or not form.is_autocast else 0)
