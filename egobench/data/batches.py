"""Samples to tensors: token ids with labels, right-padded or packed into one row, and the pictures as uint8."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from egobench.models.pixels import MEAN, STD
from egobench.models.prompt import IGNORED, Encoded

Pixels = npt.NDArray[np.uint8]

WIDTH_MULTIPLE: Final = 8
"""Of bucketed rows: few shapes to plan and compile for, and whole tiles of the matrix units."""
LONGEST_MULTIPLE: Final = 128
"""What the kernels of packed rows hear of the longest sample is rounded up to it: they work in blocks of as many
tokens, and a compiled graph of one such number serves most steps."""
MOST_GRID: Final = 2.0
"""A grid of packed samples holds at most so many times their tokens; one that held more would not pay."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch: a row a sample, or all samples in one row.

    Padding stands on the right, so a causal mask alone keeps it out of every real token.
    """

    input_ids: torch.Tensor
    """int64 [rows, width]."""
    labels: torch.Tensor
    """int64 [rows, width]; IGNORED where nothing is supervised, and where a packed sample begins."""
    pixels: torch.Tensor
    """uint8 [images, height, width, 3], in the order of the image tokens."""
    num_samples: int
    image_tokens: int
    text_tokens: int
    supervised_tokens: int
    padding_tokens: int
    lengths: tuple[int, ...] = ()
    """Real tokens of each sample, in the order of the samples."""
    samples: tuple[int, ...] = ()
    """Which samples of the training set they are; empty where nobody said."""
    position_ids: torch.Tensor | None = None
    """int64 [1, width], counting from 0 in every sample; None unless packed."""
    cu_seqlens: torch.Tensor | None = None
    """int32 [samples + 1]: where packed samples begin, and where the last one ends; None unless packed."""
    grid: torch.Tensor | None = None
    """int64 [samples, longest]: the places in a packed row of each sample's tokens; after its end, of its last one.

    None unless packed, and where samples are so unlike in length that the grid would be mostly padding.
    """
    cells: torch.Tensor | None = None
    """int64 [width]: the places in the flattened grid of each token of the row."""

    def counts(self) -> dict[str, int]:
        """Return what a step line counts."""
        names = ("num_samples", "image_tokens", "text_tokens", "supervised_tokens", "padding_tokens")
        return {name: getattr(self, name) for name in names}

    def inputs(self) -> dict[str, Any]:
        """Return what the model is called with, beside the pictures.

        Packed rows go with the boundaries of their samples, under the names that transformers has for them, and with
        the lengths on the host: to read them from a GPU would be to wait for it in every layer.
        """
        if self.cu_seqlens is None:
            return {"input_ids": self.input_ids}
        longest = _rounded_up(max(self.lengths), LONGEST_MULTIPLE)
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "cu_seq_lens_q": self.cu_seqlens,
            "cu_seq_lens_k": self.cu_seqlens,
            "max_length_q": longest,
            "max_length_k": longest,
            "segment_lengths": self.lengths,
            **({} if self.grid is None else {"grid": self.grid, "cells": self.cells}),
        }

    def to(self, device: torch.device) -> Batch:
        """Copy to the device; from pinned memory, without waiting."""
        if device.type == "cpu":
            return self
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """Return the batch in pinned memory."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        names = ("input_ids", "labels", "pixels", "position_ids", "cu_seqlens", "grid", "cells")
        held = ((name, getattr(self, name)) for name in names)
        moved: dict[str, Any] = {name: move(tensor) for name, tensor in held if tensor is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class Padding:
    """One value of the padding axis."""

    arrange: Callable[[Sequence[int], Sequence[int], int], list[list[int]]]
    """(samples of a global batch, their lengths, micro-batch size) -> its micro-batches, over all ranks.

    Which samples an update sees, and so what it computes, never depends on the padding: only who shares a row does.
    """
    collate: Callable[..., Batch]
    """(encoded, pixels, *, pad_id, max_length) -> batch."""


def in_order(samples: Sequence[int], lengths: Sequence[int], micro_batch_size: int) -> list[list[int]]:
    """Cut a global batch into micro-batches as it comes."""
    return [list(samples[start : start + micro_batch_size]) for start in range(0, len(samples), micro_batch_size)]


def by_length(samples: Sequence[int], lengths: Sequence[int], micro_batch_size: int) -> list[list[int]]:
    """Cut a global batch into micro-batches of similar length, the longest first.

    Micro-batches that stand side by side are those that ranks compute at the same time: none waits for long.
    """
    ranked = sorted(range(len(samples)), key=lambda index: (-lengths[index], index))
    return in_order([samples[index] for index in ranked], lengths, micro_batch_size)


def by_total(samples: Sequence[int], lengths: Sequence[int], micro_batch_size: int) -> list[list[int]]:
    """Cut a global batch into micro-batches of similar totals of tokens, so that ranks finish together.

    Longest first, each sample goes where the fewest tokens are and room is left: what a packed micro-batch costs is
    its tokens. Every micro-batch still holds `micro_batch_size` samples, because pictures cost the tower the same
    whatever is asked about them.
    """
    chunks: list[list[int]] = [[] for _ in range(-(-len(samples) // micro_batch_size))]
    with_room = [(0, number) for number in range(len(chunks))]  # a heap of (tokens, chunk)
    for index in sorted(range(len(samples)), key=lambda index: (-lengths[index], index)):
        total, lightest = heapq.heappop(with_room)
        chunks[lightest].append(samples[index])
        if len(chunks[lightest]) < micro_batch_size:
            heapq.heappush(with_room, (total + lengths[index], lightest))
    return chunks


def pad_to_max(encoded: Sequence[Encoded], pixels: Pixels, *, pad_id: int, max_length: int) -> Batch:
    """Pad every sample to the longest sequence that the recipe allows: every step has the same shape."""
    return _pad(encoded, pixels, pad_id, max_length)


def pad_to_longest(encoded: Sequence[Encoded], pixels: Pixels, *, pad_id: int, max_length: int) -> Batch:
    """Pad to the longest sample of the micro-batch."""
    return _pad(encoded, pixels, pad_id, max(len(item.input_ids) for item in encoded))


def pad_to_multiple(encoded: Sequence[Encoded], pixels: Pixels, *, pad_id: int, max_length: int) -> Batch:
    """Pad to the longest sample of the micro-batch, rounded up."""
    longest = max(len(item.input_ids) for item in encoded)
    return _pad(encoded, pixels, pad_id, min(max_length, _rounded_up(longest, WIDTH_MULTIPLE)))


def pack(encoded: Sequence[Encoded], pixels: Pixels, *, pad_id: int, max_length: int) -> Batch:
    """Put the samples one after another into a single row, without padding."""
    lengths = tuple(len(item.input_ids) for item in encoded)
    starts = np.cumsum([0, *lengths])
    ids = np.concatenate([np.asarray(item.input_ids, dtype=np.int64) for item in encoded])
    labels = np.concatenate([np.asarray(item.labels, dtype=np.int64) for item in encoded])
    # The loss asks each token for the next one of the row: no sample may be asked for the first token of another.
    labels[starts[:-1]] = IGNORED
    positions = np.concatenate([np.arange(length) for length in lengths])
    batch = _batch(encoded, pixels, ids[None], labels[None])
    return replace(
        batch,
        position_ids=torch.from_numpy(positions[None]),
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
        **_grid(lengths),
    )


def _grid(lengths: Sequence[int]) -> dict[str, Any]:
    """Return `grid` and `cells` of a packed row, nothing where they would not pay."""
    longest = max(lengths)
    if len(lengths) * longest > MOST_GRID * sum(lengths):
        return {}
    starts, last = np.cumsum([0, *lengths[:-1]]), np.asarray(lengths) - 1
    grid = starts[:, None] + np.minimum(np.arange(longest), last[:, None])
    cells = np.concatenate([row * longest + np.arange(length) for row, length in enumerate(lengths)])
    return {"grid": torch.from_numpy(grid), "cells": torch.from_numpy(cells)}


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _pad(encoded: Sequence[Encoded], pixels: Pixels, pad_id: int, width: int) -> Batch:
    ids = np.full((len(encoded), width), pad_id, dtype=np.int64)
    labels = np.full((len(encoded), width), IGNORED, dtype=np.int64)
    for row, item in enumerate(encoded):
        ids[row, : len(item.input_ids)] = item.input_ids
        labels[row, : len(item.labels)] = item.labels
    return _batch(encoded, pixels, ids, labels)


def _batch(
    encoded: Sequence[Encoded], pixels: Pixels, ids: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
) -> Batch:
    image_tokens = sum(item.num_image_tokens for item in encoded)
    lengths = tuple(len(item.input_ids) for item in encoded)
    return Batch(
        input_ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        pixels=torch.from_numpy(pixels),
        num_samples=len(encoded),
        image_tokens=image_tokens,
        text_tokens=sum(lengths) - image_tokens,
        supervised_tokens=sum(item.num_supervised for item in encoded),
        padding_tokens=ids.size - sum(lengths),
        lengths=lengths,
    )


MAX = Padding(in_order, pad_to_max)
DYNAMIC = Padding(in_order, pad_to_longest)
BUCKETED = Padding(by_length, pad_to_multiple)
PACKED = Padding(by_total, pack)


class Normaliser:
    """uint8 pictures on the device to the tower's input: a quarter of the bytes cross the bus."""

    def __init__(self, device: torch.device) -> None:
        self._scale = torch.tensor([1 / (255 * s) for s in STD], device=device).view(1, 3, 1, 1)
        self._shift = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)], device=device).view(1, 3, 1, 1)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 [images, 3, height, width]."""
        return pixels.permute(0, 3, 1, 2).to(torch.float32).mul_(self._scale).add_(self._shift).contiguous()
