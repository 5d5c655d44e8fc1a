"""What DeepSpeed's stages 1 and 2 have for a while: buffers that gradients are reduced out of, and copies on the way.

Source: `setup_buckets`, `reduce_independent_p_g_buckets_and_remove_grads`, `average_tensor` and the epilogue of
`deepspeed/runtime/zero/stage_1_and_2.py`, 0.19.8.
"""

from __future__ import annotations

from typing import Final

from egobench.predict.formats import Formats
from egobench.predict.gathered import Gathered
from egobench.predict.numbers import Counts

BUCKET: Final = 500_000_000
"""Numbers, DeepSpeed's default; egobench/train/strategies/zero.py."""


def reduced(
    count: Counts, form: Formats, own_gradients: float, num_shards: int, is_cast: bool, *, has_buffers: bool,
    is_late: bool,
) -> Gathered:  # fmt: skip
    """Return it by the moment.

    Two buffers come with the first gradient. A bucket is copied whole when it is reduced; a gradient larger than a
    bucket bypasses it, and is copied alone. `own_gradients`: of this rank, while they are added to those of earlier
    micro-steps; `is_cast`: they are cast to fp32 before; `has_buffers`: unless those are there anyway;
    `is_late`: nothing is reduced before the backward pass has ended.
    """
    wide, total = float(form.compute), count.updated
    embedding, head = _ends(count)
    buffers, tied = (
        2 * wide * min(BUCKET, total) * has_buffers,
        wide * count.head_trained if count.embedding == 0 else 0.0,
    )
    copied = wide * min(BUCKET, count.blocks_trained + head) if total > BUCKET else 0.0
    cast = 4.0 * min(max(embedding, head, count.largest_matrix), total / num_shards) if is_cast else 0.0
    if embedding > BUCKET:
        at_end = 2 * wide * embedding
    elif total > BUCKET:  # its predecessors are reduced while it waits
        at_end = wide * (embedding + min(BUCKET, total - embedding))
    else:
        at_end = wide * total
    at_end += buffers + own_gradients + cast
    if is_late:
        return Gathered(head=wide * count.head_trained, embedding=at_end)
    going_back = buffers + own_gradients + tied + cast
    return Gathered(
        head=wide * count.head_trained,
        last=buffers + tied + (2 * wide * head + cast + own_gradients if head > BUCKET else 0.0),
        earlier=going_back + copied,
        first=going_back + copied,
        tower=going_back + copied * (count.tower_trained > 0),
        embedding=at_end,
    )


def pieces_of_a_rank(count: Counts, num_shards: int) -> float:
    """Return how many numbers the weights have that a partition touches, of the rank that has most.

    A partition is an equal share of all weights in their order; only embedding and head are large beside it.
    """
    total = count.updated
    embedding, head = _ends(count)
    before, share, most = total - head - count.blocks_trained - embedding, total / num_shards, 0.0
    large = [(start, start + size) for start, size in ((before, embedding), (total - head, head)) if size]
    for rank in {min(num_shards - 1, int(place / share)) for ends in large for place in (ends[0], ends[1] - 1)}:
        held, end = share, (rank + 1) * share
        for first, last in large:
            overlap = min(end, last) - max(end - share, first)
            held += last - first - overlap if overlap > 0 else 0.0
        most = max(most, held)
    return most or share


def _ends(count: Counts) -> tuple[float, float]:
    """Return the trained numbers of embedding and head; a tied one is an embedding."""
    return (count.trained_embedding, 0.0 if count.embedding == 0 else count.head_trained)
