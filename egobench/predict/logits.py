"""What a loss over the vocabulary takes, by the moment."""

from __future__ import annotations

from typing import Final

from egobench.predict.constants import Software
from egobench.predict.formats import Formats
from egobench.predict.moments import Linear
from egobench.predict.numbers import Counts
from egobench.predict.shapes import ModelShape

CHUNK_BYTES: Final = 256 * 2**20
"""Of fp32 logits that a chunked loss holds at once; it and the next are those of egobench/train/losses.py."""
ROWS_TILE: Final = 128


def rows_per_chunk(vocabulary: int) -> int:
    """Return how many positions' logits a chunked loss holds, as egobench/train/losses.py does."""
    rows = max(1, CHUNK_BYTES // (4 * vocabulary))
    return rows - rows % ROWS_TILE if rows > ROWS_TILE else rows


def logits(
    shape: ModelShape, form: Formats, count: Counts, loop: Software, loss: str, is_compiled: bool, is_one_chunk: bool
) -> tuple[Linear, Linear, Linear]:
    """Return what the loss takes: at the end of the forward pass, going back, and while the head goes back."""
    if loss == "plain" or not loop.aims:
        return _everywhere(shape, form, loop, loss, is_compiled)
    return _aimed(shape, form, count, loss, is_one_chunk)


def _everywhere(
    shape: ModelShape, form: Formats, loop: Software, loss: str, is_compiled: bool
) -> tuple[Linear, Linear, Linear]:
    vocab, wide = float(shape.llm.vocab), form.compute
    forward, back = loop.plain_logits if wide == 2 else (8.0, 12.0)
    if loop.keeps_outputs:
        back += wide
    if is_compiled and loop.compiled_logits is not None:
        forward = back = loop.compiled_logits
    if loss != "plain":
        forward = back = loop.chunked_logits
    after = min(wide, back) if loss == "plain" else 0.0
    return Linear(position=forward * vocab), Linear(position=back * vocab), Linear(position=after * vocab)


def _aimed(
    shape: ModelShape, form: Formats, count: Counts, loss: str, is_one_chunk: bool
) -> tuple[Linear, Linear, Linear]:
    """Return the same of a head that makes the loss at supervised positions, a chunk at a time."""
    vocab, wide = float(shape.llm.vocab), form.compute
    head, is_trained, is_cast = count.head, count.head_trained > 0, form.casts_weights and count.cast_head(form) > 0
    # 16-bit logits, their fp32 copy, the log-softmax; going back the softmax, the gradient and its cast.
    chunk = vocab * (8.0 + wide % 4)
    cast = 2.0 * head * is_cast
    if loss == "fused_linear":  # Liger's gradients are made in the forward pass
        summed, rows = ((4.0 + wide) * head if is_trained else 0.0), wide * shape.llm.hidden
        made = Linear(summed, supervised=rows)
        return Linear(summed + cast, chunk=chunk, supervised=rows), made, made
    copy = wide if wide < 4 else 0.0  # the product, before it is fp32
    if not is_trained:
        summed = 0.0
    elif is_one_chunk:
        summed = (copy + 8.0 if is_cast or wide == 4 else 2.0 * wide) * head
    else:
        summed = (copy + 12.0) * head
    # The logits' gradient is there while the weight's is added up; their softmax has gone by then.
    back = Linear(cast + summed, chunk=wide * vocab) if is_trained else Linear(cast, chunk=chunk)
    return Linear(cast, chunk=chunk), back, Linear()
