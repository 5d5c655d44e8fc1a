"""A micro-batch of given shapes, collated by the worker's own code from samples without content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from egobench.data.batches import Batch, Normaliser, pack, pad_to_max
from egobench.models.prompt import IGNORED, Encoded
from egobench.records.trace import TracedBatch
from egobench.train.feed import Dealt


def micro_batch(wanted: TracedBatch, image_px: int) -> Dealt:
    """Return a micro-batch of the shapes, on whatever mode makes tensors here."""
    pixels = np.zeros((wanted.num_images, image_px, image_px, 3), np.uint8)
    collate = pack if wanted.is_packed else pad_to_max
    made = collate(list(_samples(wanted)), pixels, pad_id=0, max_length=wanted.width)
    if tuple(made.input_ids.shape) != (wanted.num_rows, wanted.width):
        raise ValueError(f"{len(wanted.lengths)} samples make {tuple(made.input_ids.shape)}, not {wanted}")
    batch = _without_content(made)
    return Dealt(batch, Normaliser(batch.pixels.device)(batch.pixels), max(1, batch.supervised_tokens))


def narrowed(wanted: TracedBatch, width: int) -> TracedBatch:
    """Return the micro-batch with shorter samples: of another width, or packed into as much less."""
    most = width if not wanted.is_packed else max(1, width // len(wanted.lengths))
    lengths = tuple(min(most, length) for length in wanted.lengths)
    supervised = min(wanted.num_supervised, sum(lengths))
    total = sum(lengths) if wanted.is_packed else width
    return wanted.model_copy(update={"width": total, "lengths": lengths, "num_supervised": supervised})


def _samples(wanted: TracedBatch) -> Iterator[Encoded]:
    number = len(wanted.lengths)
    for index, length in enumerate(wanted.lengths):
        supervised = wanted.num_supervised // number + (index < wanted.num_supervised % number)
        labels = (*([IGNORED] * (length - supervised)), *([0] * supervised))
        yield Encoded((0,) * length, labels, length - supervised, num_image_tokens=0)


def _without_content(batch: Batch) -> Batch:
    """Make every tensor anew, so that under fake tensors it is one."""
    held = {one.name: getattr(batch, one.name) for one in fields(batch)}
    made: dict[str, Any] = {
        name: torch.zeros_like(value, device="cpu") for name, value in held.items() if isinstance(value, torch.Tensor)
    }
    return replace(batch, **made)
