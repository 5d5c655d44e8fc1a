"""The micro-batch of the whole run that needs most memory, run once before training.

Which samples share a micro-batch is known in advance, so a rank need not train for hours to learn that its longest
one does not fit. It is run forward and backward while room for the optimizer's states is held; its gradients are thrown
away, and training neither begins later in its data nor draws other random numbers. All ranks do this together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from egobench.models.prompt import Encoded
from egobench.train import dry_run
from egobench.train.feed import Dealt, Feed
from egobench.worker.classify import classify

if TYPE_CHECKING:
    from egobench.train.setup import Work


def run_worst_case(work: Work) -> None:
    """Run this rank's largest micro-batches; an out-of-memory error says that it was one of them.

    It is placed in phase `forward` or `backward` of step -1. The peak that is measured so far includes them.
    """
    with dry_run.without_trace(work):
        found = largest(work.feed, work.material.train.encoded)
        # A pass is a collective: every rank makes as many, and those without a second one repeat the first.
        num_passes = max(work.strategy.gather(len(found)))
        held = dry_run.reserve_states(work)
        for dealt in (found * num_passes)[:num_passes]:
            try:
                dry_run.settle(work, dealt)
                dry_run.run_micro_steps(work, dealt)
            except (RuntimeError, MemoryError) as error:
                if classify(error, work.rank.device.type == "cuda") in ("oom", "host_oom"):
                    what = f"the worst-case micro-batch, tried before training ({shape_of(dealt)})"
                    error.args = (f"{what}: {error}",)
                raise
            work.strategy.forget()
        del held


def largest(feed: Feed, encoded: Sequence[Encoded]) -> list[Dealt]:
    """Return this rank's micro-batch with most tokens, padding included, and the one with most pictures if it has more.

    Nothing where no step is left.
    """
    padded, packed, pictured = Largest(), Largest(), Largest()
    for samples in feed.planned():
        lengths = [len(encoded[index].input_ids) for index in samples]
        padded.offer(len(lengths) * max(lengths), samples)
        packed.offer(sum(lengths), samples)
        pictured.offer(sum(encoded[index].num_image_tokens for index in samples), samples)
    # Whether rows are padded, and how far, is known when they are made.
    made = [feed.gathered(samples) for samples in _distinct([padded.samples, packed.samples, pictured.samples])]
    if not made:
        return []
    widest = max(made, key=lambda dealt: dealt.batch.input_ids.numel())
    fullest = max(made, key=lambda dealt: dealt.batch.pixels.shape[0])
    return [widest, fullest] if fullest.batch.pixels.shape[0] > widest.batch.pixels.shape[0] else [widest]


class Largest:
    """The samples that were offered with the largest size."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self._size = -1

    def offer(self, size: int, samples: list[int]) -> None:
        """Keep these, if they are larger than those before."""
        if size > self._size:
            self._size, self.samples = size, samples


def _distinct(lists: Sequence[list[int]]) -> list[list[int]]:
    return [list(samples) for samples in dict.fromkeys(tuple(samples) for samples in lists if samples)]


def shape_of(dealt: Dealt) -> str:
    """Say how large a micro-batch is, for a message."""
    batch = dealt.batch
    rows, width = batch.input_ids.shape
    return f"{batch.num_samples} samples in {rows} x {width} tokens, {batch.pixels.shape[0]} images"
