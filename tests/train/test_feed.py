"""Collating ahead changes when a batch is made, never what is in it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from egobench.data.batches import Batch, pad_to_longest
from egobench.models.prompt import IGNORED, Encoded
from egobench.train.feed import Feed
from egobench.train.rank import Rank
from egobench.train.sampler import Sampler

ENCODED = [Encoded((1, 2, *[7] * (n % 4 + 1)), (IGNORED, IGNORED, *[7] * (n % 4 + 1)), 2, 1) for n in range(10)]


def feed(*, is_costly: bool, broken: int | None = None, names: list[str] | None = None) -> Feed:
    def collate(indices: Sequence[int]) -> Batch:
        if broken in indices:
            raise FileNotFoundError("000007.png")
        if names is not None:
            names.append(threading.current_thread().name)
        pixels = np.stack([np.full((2, 2, 3), index, dtype=np.uint8) for index in indices])
        return pad_to_longest([ENCODED[index] for index in indices], pixels, pad_id=0, max_length=8)

    return Feed(
        ENCODED, collate, Sampler(len(ENCODED), 0), Rank(0, 0, 1, torch.device("cpu")),
        micro_batch_size=2, num_accumulation_steps=3, num_steps=4, is_costly=is_costly,
    )  # fmt: skip


def test_the_same_batches_in_the_same_order_and_then_no_more() -> None:
    names: list[str] = []
    now, ahead = feed(is_costly=False), feed(is_costly=True, names=names)
    for _ in range(12):
        a, b = now.next(), ahead.next()
        assert torch.equal(a.batch.pixels, b.batch.pixels)
        assert torch.equal(a.batch.input_ids, b.batch.input_ids)
        assert a.global_supervised_tokens == b.global_supervised_tokens
    assert set(names) and all(name.startswith("feed") for name in names)
    for each in (now, ahead):
        with pytest.raises(StopIteration):
            each.next()
        each.close()


def test_the_divisor_is_that_of_the_whole_update() -> None:
    each = feed(is_costly=False)
    for _ in range(4):
        dealt = [each.next() for _ in range(3)]
        assert {item.global_supervised_tokens for item in dealt} == {sum(d.batch.supervised_tokens for d in dealt)}


def test_a_picture_that_cannot_be_read_fails_the_rank() -> None:
    each = feed(is_costly=True, broken=7)
    with pytest.raises(FileNotFoundError, match="000007"):
        for _ in range(12):
            each.next()
    each.close()
