"""How a global batch is cut into micro-batches, and what stands in their rows."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from egobench.data.batches import BUCKETED, DYNAMIC, MAX, PACKED, WIDTH_MULTIPLE, Batch, Padding
from egobench.models.prompt import IGNORED, Encoded

PADDINGS = {"max": MAX, "dynamic": DYNAMIC, "bucketed": BUCKETED, "packed": PACKED}
PAD, MAX_LENGTH = 0, 64


def encoded(length: int, number: int = 0) -> Encoded:
    """Make a sample of one image token, whose tokens tell which sample they are of."""
    ids = tuple(100 * (number + 1) + place for place in range(length))
    prompt = length - 3
    return Encoded(ids, (*[IGNORED] * prompt, *ids[prompt:]), prompt, num_image_tokens=1)


def collated(padding: Padding, *lengths: int) -> Batch:
    items = [encoded(length, number) for number, length in enumerate(lengths)]
    pixels = np.zeros((len(items), 2, 2, 3), dtype=np.uint8)
    return padding.collate(items, pixels, pad_id=PAD, max_length=MAX_LENGTH)


def lengths_of(seed: int, count: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(30, 60) for _ in range(count)]


@pytest.mark.parametrize("padding", PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize(("count", "size"), [(16, 4), (16, 16), (8, 1), (6, 2)])
def test_every_sample_of_the_global_batch_is_in_one_micro_batch(padding: Padding, count: int, size: int) -> None:
    samples = [7 * index for index in range(count)]
    chunks = padding.arrange(samples, lengths_of(0, count), size)
    assert sorted(index for chunk in chunks for index in chunk) == samples
    assert {len(chunk) for chunk in chunks} == {size}
    assert chunks == padding.arrange(samples, lengths_of(0, count), size)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_bucketed_steps_take_as_long_as_their_slowest_rank_and_that_is_shorter(num_ranks: int) -> None:
    lengths = lengths_of(1, 64)

    def widths(padding: Padding) -> list[int]:
        return [max(lengths[index] for index in chunk) for chunk in padding.arrange(range(64), lengths, 4)]

    def slowest(row: list[int]) -> int:
        return sum(max(row[start : start + num_ranks]) for start in range(0, len(row), num_ranks))

    bucketed = widths(BUCKETED)
    assert bucketed == sorted(bucketed, reverse=True)
    assert slowest(bucketed) < 0.95 * slowest(widths(DYNAMIC))
    shuffled = random.Random(0).sample(bucketed, len(bucketed))
    assert slowest(bucketed) < slowest(shuffled) or num_ranks == 1


@pytest.mark.parametrize("seed", range(5))
def test_packed_micro_batches_hold_the_same_number_of_tokens(seed: int) -> None:
    lengths = lengths_of(seed, 64)
    chunks = PACKED.arrange(range(64), lengths, 8)
    totals = [sum(lengths[index] for index in chunk) for chunk in chunks]
    in_order = [sum(lengths[index] for index in chunk) for chunk in DYNAMIC.arrange(range(64), lengths, 8)]
    mean = sum(lengths) / len(chunks)
    assert max(totals) / mean - 1 < 0.01 < max(in_order) / mean - 1


@pytest.mark.parametrize(("name", "width"), [("max", MAX_LENGTH), ("dynamic", 11), ("bucketed", 2 * WIDTH_MULTIPLE)])
def test_padded_rows(name: str, width: int) -> None:
    batch = collated(PADDINGS[name], 11, 5)
    assert tuple(batch.input_ids.shape) == tuple(batch.labels.shape) == (2, width)
    assert batch.input_ids[1, :5].tolist() == list(encoded(5, 1).input_ids)
    assert set(batch.input_ids[1, 5:].tolist()) == {PAD}
    assert set(batch.labels[1, 5:].tolist()) == {IGNORED}
    assert batch.padding_tokens == 2 * width - 16
    assert set(batch.inputs()) == {"input_ids"}


def test_bucketed_rows_stay_within_the_limit() -> None:
    batch = PADDINGS["bucketed"].collate([encoded(18)], np.zeros((1, 2, 2, 3), np.uint8), pad_id=PAD, max_length=19)
    assert batch.input_ids.shape[1] == 19


def test_a_packed_row() -> None:
    batch = collated(PACKED, 11, 5, 7)
    expected = [token for number, length in enumerate((11, 5, 7)) for token in encoded(length, number).input_ids]
    assert batch.input_ids.tolist() == [expected]
    assert batch.cu_seqlens is not None and batch.position_ids is not None
    assert batch.cu_seqlens.dtype == torch.int32 and batch.cu_seqlens.tolist() == [0, 11, 16, 23]
    assert batch.position_ids.tolist() == [[*range(11), *range(5), *range(7)]]
    assert (batch.padding_tokens, batch.num_samples, batch.supervised_tokens) == (0, 3, 9)
    given = batch.inputs()
    assert given["segment_lengths"] == batch.lengths == (11, 5, 7)
    assert given["cu_seq_lens_q"] is given["cu_seq_lens_k"] is batch.cu_seqlens
    assert given["max_length_q"] == given["max_length_k"] == 128
    assert given["position_ids"] is batch.position_ids


def test_the_grid_of_a_packed_row_holds_its_samples() -> None:
    batch = collated(PACKED, 11, 5, 7)
    assert batch.grid is not None and batch.cells is not None
    assert batch.grid.shape == (3, 11) and batch.grid.dtype == batch.cells.dtype == torch.int64
    for row, start, length in zip(batch.grid.tolist(), (0, 11, 16), (11, 5, 7), strict=True):
        assert row == [*range(start, start + length), *([start + length - 1] * (11 - length))]
    assert batch.grid.flatten()[batch.cells].tolist() == list(range(23))
    given = batch.inputs()
    assert given["grid"] is batch.grid and given["cells"] is batch.cells


def test_no_grid_of_padding() -> None:
    batch = collated(PACKED, 40, 6, 6)
    assert batch.grid is None and batch.cells is None
    assert not {"grid", "cells"} & set(batch.inputs())


def test_no_packed_sample_is_asked_for_the_first_token_of_another() -> None:
    """Neither where every token is supervised, which no prompt of ours makes."""
    items = [Encoded(ids, ids, 0, 0) for ids in ((11, 12, 13), (21, 22), (31, 32, 33))]
    batch = PACKED.collate(items, np.zeros((0, 2, 2, 3), np.uint8), pad_id=PAD, max_length=MAX_LENGTH)
    targets = batch.labels[0, 1:].tolist()  # what the loss asks each token for
    assert targets == [12, 13, IGNORED, 22, IGNORED, 32, 33]


@pytest.mark.parametrize("name", PADDINGS)
def test_counts_of_real_tokens_do_not_depend_on_the_padding(name: str) -> None:
    batch, plain = collated(PADDINGS[name], 12, 30, 20), collated(DYNAMIC, 12, 30, 20)
    real = ("num_samples", "image_tokens", "text_tokens", "supervised_tokens")
    assert [batch.counts()[key] for key in real] == [plain.counts()[key] for key in real]
    assert batch.lengths == (12, 30, 20)
    tokens = batch.image_tokens + batch.text_tokens + batch.padding_tokens
    assert tokens == batch.input_ids.numel()


@pytest.mark.parametrize("name", ["dynamic", "packed"])
def test_every_tensor_is_moved(name: str) -> None:
    """To the meta device, which is as good as any to see what was left behind."""
    batch = collated(PADDINGS[name], 12, 30).to(torch.device("meta"))
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == (7 if name == "packed" else 3)
    assert all(tensor.is_meta for tensor in tensors)
