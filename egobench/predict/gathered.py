"""What sharding makes whole for a while: weights that are multiplied with, and gradients on their way to their shards.

FSDP 2 receives a unit in one buffer and copies it into its weights; going back it receives the next unit ahead, and
the fp32 gradients of a unit stay where they are reduced from until the next unit's are ready.
"""

from __future__ import annotations

from dataclasses import dataclass

from egobench.predict.constants import Software
from egobench.predict.formats import Formats
from egobench.predict.numbers import Counts

ZERO_LIVE = 1_000_000_000
"""Numbers that DeepSpeed keeps whole: its stage3_max_live_parameters."""


@dataclass(frozen=True)
class Gathered:
    """Bytes, by the moment."""

    forward: float = 0.0
    """At the end of the forward pass: the head."""
    received: float = 0.0
    """The buffer that the head came in."""
    head: float = 0.0
    """While the head goes back."""
    last: float = 0.0
    """While the LLM's last block does."""
    earlier: float = 0.0
    """While one before it does."""
    first: float = 0.0
    tower: float = 0.0
    embedding: float = 0.0
    """At the very end, with all gradients."""

    @property
    def is_any(self) -> bool:
        """Tell whether weights are sharded at all."""
        return self.forward > 0


def gathered(count: Counts, form: Formats, strategy: str, sharding: str, shards: int, loop: Software) -> Gathered:
    """Return what is whole, by the moment."""
    cast = 2.0 * form.casts_weights
    is_alone = shards == 1 and (strategy == "zero3" or loop.fsdp == 1)  # FSDP 2 copies into 16 bits even so
    if is_alone or strategy not in ("fsdp", "zero3"):
        return Gathered(head=cast * count.head_trained)  # autocast's gradient, before it is fp32
    if strategy == "zero3":
        live = float(form.compute) * min(ZERO_LIVE, count.trained + count.frozen_matrices + count.frozen_others)
        return Gathered(live, 0.0, live, live, live, live, live, live)
    if loop.fsdp == 1:
        return _flat(count, form, loop)
    return _fully_sharded(count, form, sharding, loop)


def _flat(count: Counts, form: Formats, loop: Software) -> Gathered:
    """Return the same of FSDP 1: embedding and head are in the root, which is whole all the time."""
    wide = form.frozen_matrix
    root = wide * (count.head + count.embedding)
    block = wide * count.block + loop.quantised_bytes * count.block_quantised + form.gradient * count.block_trained
    first = root + block
    if loop.keeps_gathered and count.trained == 0:
        first = max(first, wide * count.frozen_matrices + loop.quantised_bytes * count.quantised)
    return Gathered(root, 0.0, root, root + block, root + block, first, root + wide * count.tower_block, root)


def _fully_sharded(count: Counts, form: Formats, sharding: str, loop: Software) -> Gathered:
    wide, is_tied = form.compute, count.embedding == 0
    block = wide * count.block + loop.quantised_bytes * count.block_quantised
    head, tower = wide * count.head, wide * count.tower_block
    kept = wide * (count.trained + count.frozen_matrices) if sharding == "shard_grad_op" else 0.0
    reducing = wide + 4.0
    # A root with a tied embedding and head is whole, and so is its gradient, until the end.
    root = (head + wide * count.head_trained) if is_tied else 0.0
    back = max(2 * block, kept) + wide * count.block_trained + root
    # What has gone back is cut up again.
    kept_first = max(0.0, kept - wide * (count.other_blocks + (0 if is_tied else count.head)))
    kept_tower = max(0.0, kept_first - wide * count.block)
    return Gathered(
        forward=max(head, kept),
        received=head + wide * count.block,  # the block before it stays until the head has been copied out
        head=kept + (reducing * count.head_trained if count.head_trained and not is_tied else head + root),
        last=back + 4.0 * max(count.block_trained, 0.0 if is_tied else count.head_trained),
        earlier=back + 4.0 * count.block_trained,
        first=max(2 * block, kept_first) + (wide + 4.0) * count.block_trained + root,
        tower=max(2 * tower, kept_tower) + reducing * (count.tower_block if count.tower_trained else 0.0) + root,
        embedding=reducing * (count.head_trained if is_tied else count.trained_embedding),
    )
