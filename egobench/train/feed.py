"""The micro-batches of a rank, in order, collated ahead where that costs time."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import torch

from egobench.data.batches import Batch, Normaliser
from egobench.models.prompt import Encoded
from egobench.train.rank import Rank
from egobench.train.sampler import Position, Sampler

NUM_AHEAD: Final = 2
"""Micro-batches collated by threads before they are asked for."""
NUM_THREADS: Final = 4

Collate = Callable[[Sequence[int]], Batch]


@dataclass(frozen=True)
class Dealt:
    """One micro-batch and what its loss is divided by."""

    batch: Batch
    """On the device."""
    pixel_values: torch.Tensor
    global_supervised_tokens: int
    """Of the whole update: all ranks, all micro-steps."""


class Feed:
    """Deals `num_steps` global batches, each in `num_accumulation_steps` micro-batches for this rank."""

    def __init__(
        self,
        encoded: Sequence[Encoded],
        collate: Collate,
        arrange: Callable[[Sequence[int], Sequence[int], int], list[list[int]]],
        sampler: Sampler,
        rank: Rank,
        *,
        micro_batch_size: int,
        num_accumulation_steps: int,
        num_steps: int,
        is_costly: bool,
    ) -> None:
        """Start collating; `is_costly`: pictures are read from files, not from memory."""
        self._encoded, self._collate, self._arrange = encoded, collate, arrange
        self._sampler, self._rank = sampler, rank
        self._micro_batch_size, self._num_steps = micro_batch_size, num_steps
        self._global_batch_size = rank.num_ranks * micro_batch_size * num_accumulation_steps
        self._normalise = Normaliser(rank.device)
        self._chunks = self._deal(sampler)
        self._ahead: deque[tuple[Future[Batch], int, Position]] = deque()
        self._position = sampler.state
        # On a CPU a thread would compete with the computation for the rank's cores, to save microseconds.
        is_ahead = is_costly or rank.device.type == "cuda"
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="feed") if is_ahead else None

    @property
    def micro_batch_size(self) -> int:
        return self._micro_batch_size

    @property
    def position(self) -> Position:
        """Return where the update ends whose micro-batches were dealt last; what is collated ahead is not read yet."""
        return self._position

    def seek(self, position: Position, num_steps: int) -> None:
        """Deal `num_steps` updates from this position on; before anything was dealt."""
        self._sampler.seek(position)
        self._position, self._num_steps = position, num_steps

    def next(self) -> Dealt:
        """Return the next micro-batch on the device; raise StopIteration after the last."""
        if self._pool is None:
            chunk, total, self._position = next(self._chunks)
            batch = self._collate(chunk)
        else:
            self._submit(self._pool)
            if not self._ahead:
                raise StopIteration
            future, total, self._position = self._ahead.popleft()
            batch = future.result().to(self._rank.device)
        return Dealt(batch, self._normalise(batch.pixels), total)

    def close(self) -> None:
        """Drop what was collated ahead and end the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def planned(self) -> Iterator[list[int]]:
        """Yield the samples of every micro-batch that is to come, without dealing any; before anything was dealt."""
        return (chunk for chunk, _, _ in self._deal(copy.copy(self._sampler)))

    def gathered(self, samples: Sequence[int]) -> Dealt:
        """Return any samples as one micro-batch, out of turn, that makes an update alone."""
        batch = self._collate_pinned(samples).to(self._rank.device)
        return Dealt(batch, self._normalise(batch.pixels), max(1, batch.supervised_tokens))

    def _deal(self, sampler: Sampler) -> Iterator[tuple[list[int], int, Position]]:
        for _ in range(self._num_steps):
            batch = sampler.take(self._global_batch_size)
            position = sampler.state
            # Every rank knows every sample's length, so the divisor needs no communication.
            total = sum(self._encoded[index].num_supervised for index in batch)
            lengths = [len(self._encoded[index].input_ids) for index in batch]
            # The global batch is cut first and dealt out afterwards, so that the same samples share a micro-batch
            # (and its padding) for any split into ranks x accumulation.
            for chunk in self._arrange(batch, lengths, self._micro_batch_size)[self._rank.rank :: self._rank.num_ranks]:
                yield chunk, total, position

    def _submit(self, pool: ThreadPoolExecutor) -> None:
        while len(self._ahead) <= NUM_AHEAD:
            following = next(self._chunks, None)
            if following is None:
                return
            chunk, total, position = following
            self._ahead.append((pool.submit(self._collate_pinned, chunk), total, position))

    def _collate_pinned(self, chunk: Sequence[int]) -> Batch:
        batch = self._collate(chunk)
        return batch.pin() if self._rank.device.type == "cuda" else batch
