"""Collating ahead changes when a batch is made, never what is in it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from egobench.data.batches import BUCKETED, DYNAMIC, MAX, PACKED, Batch, Padding, in_order, pad_to_longest
from egobench.models.prompt import IGNORED, Encoded
from egobench.train.feed import Feed
from egobench.train.rank import Rank
from egobench.train.sampler import Position, Sampler

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
        ENCODED, collate, in_order, Sampler(len(ENCODED), 0), Rank(0, 0, 1, torch.device("cpu")),
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


@pytest.mark.parametrize("is_costly", [False, True])
def test_what_is_collated_ahead_is_not_read_yet(is_costly: bool) -> None:
    """Over the end of the epoch: 10 samples, 6 in an update."""
    whole = feed(is_costly=is_costly)
    dealt = [whole.next() for _ in range(6)]
    position = whole.position  # after two updates, with batches of the third one under way
    assert position == Position(epoch=1, position=2)
    rest = [whole.next() for _ in range(6)]
    resumed = feed(is_costly=is_costly)
    resumed.seek(position, num_steps=2)
    assert resumed.position == position
    for each in rest:
        again = resumed.next()
        assert torch.equal(again.batch.pixels, each.batch.pixels)
        assert again.global_supervised_tokens == each.global_supervised_tokens
    assert not torch.equal(dealt[0].batch.pixels, rest[0].batch.pixels)
    with pytest.raises(StopIteration):
        resumed.next()
    whole.close()
    resumed.close()


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


SPLITS = {"1x4": (1, 4), "2x2": (2, 2), "4x1": (4, 1)}
PADDINGS = {"max": MAX, "dynamic": DYNAMIC, "bucketed": BUCKETED, "packed": PACKED}
NUM_STEPS = 5


def dealt(padding: Padding, num_ranks: int, num_accumulation_steps: int) -> list[list[tuple[Batch, int]]]:
    """Return, by update, the micro-batches of all ranks in the order in which they are computed, with the divisor."""

    def collate(indices: Sequence[int]) -> Batch:
        pixels = np.stack([np.full((2, 2, 3), index, dtype=np.uint8) for index in indices])
        return padding.collate([ENCODED[index] for index in indices], pixels, pad_id=0, max_length=8)

    ranks = [Rank(number, number, num_ranks, torch.device("cpu")) for number in range(num_ranks)]
    feeds = [
        Feed(
            ENCODED, collate, padding.arrange, Sampler(len(ENCODED), 0), rank, micro_batch_size=2,
            num_accumulation_steps=num_accumulation_steps, num_steps=NUM_STEPS, is_costly=False,
        )
        for rank in ranks
    ]  # fmt: skip
    steps = [[each.next() for _ in range(num_accumulation_steps) for each in feeds] for _ in range(NUM_STEPS)]
    return [[(item.batch, item.global_supervised_tokens) for item in step] for step in steps]


def who(batch: Batch) -> list[int]:
    return [int(picture[0, 0, 0]) for picture in batch.pixels]


@pytest.mark.parametrize("name", PADDINGS)
def test_micro_batches_are_the_same_for_any_split_into_ranks_and_accumulation(name: str) -> None:
    whole, *others = (dealt(PADDINGS[name], *split) for split in SPLITS.values())
    for other in others:
        for one, same in zip(whole, other, strict=True):
            assert [(who(batch), total) for batch, total in one] == [(who(batch), total) for batch, total in same]
            assert all(torch.equal(a.input_ids, b.input_ids) for (a, _), (b, _) in zip(one, same, strict=True))


@pytest.mark.parametrize("name", PADDINGS)
def test_an_update_sees_the_same_samples_whatever_the_padding(name: str) -> None:
    for plain, other in zip(dealt(DYNAMIC, 2, 2), dealt(PADDINGS[name], 2, 2), strict=True):
        seen = [sorted(index for batch, _ in step for index in who(batch)) for step in (plain, other)]
        assert seen[0] == seen[1] and len(seen[0]) == 8
        assert {total for _, total in other} == {total for _, total in plain}
        assert sum(batch.supervised_tokens for batch, _ in other) == other[0][1]


def test_the_samples_of_a_packed_row_are_in_the_order_of_its_pictures() -> None:
    for batch, _ in itertools.chain.from_iterable(dealt(PACKED, 1, 4)):
        assert batch.lengths == tuple(len(ENCODED[index].input_ids) for index in who(batch))
        assert batch.padding_tokens == 0 and batch.input_ids.shape == (1, sum(batch.lengths))
