"""Samples to tensors: right-padded token ids with labels, and the pictures as uint8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from egobench.models.pixels import MEAN, STD
from egobench.models.prompt import IGNORED, Encoded

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """One micro-batch; padding stands on the right, so a causal mask alone keeps it out of every real token."""

    input_ids: torch.Tensor
    """int64 [samples, width]."""
    labels: torch.Tensor
    """int64 [samples, width]; IGNORED where nothing is supervised."""
    pixels: torch.Tensor
    """uint8 [images, height, width, 3], in the order of the image tokens."""
    num_samples: int
    image_tokens: int
    text_tokens: int
    supervised_tokens: int
    padding_tokens: int

    def counts(self) -> dict[str, int]:
        """Return what a step line counts."""
        names = ("num_samples", "image_tokens", "text_tokens", "supervised_tokens", "padding_tokens")
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device) -> Batch:
        """Copy to the device; from pinned memory, without waiting."""
        if device.type == "cpu":
            return self
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """Return the batch in pinned memory."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return replace(self, input_ids=move(self.input_ids), labels=move(self.labels), pixels=move(self.pixels))


def pad_to_max(encoded: Sequence[Encoded], pixels: Pixels, *, pad_id: int, max_length: int) -> Batch:
    """Pad every sample to the longest sequence that the recipe allows: every step has the same shape."""
    return _pad(encoded, pixels, pad_id, max_length)


def pad_to_longest(encoded: Sequence[Encoded], pixels: Pixels, *, pad_id: int, max_length: int) -> Batch:
    """Pad to the longest sample of the micro-batch."""
    return _pad(encoded, pixels, pad_id, max(len(item.input_ids) for item in encoded))


def _pad(encoded: Sequence[Encoded], pixels: Pixels, pad_id: int, width: int) -> Batch:
    ids = np.full((len(encoded), width), pad_id, dtype=np.int64)
    labels = np.full((len(encoded), width), IGNORED, dtype=np.int64)
    for row, item in enumerate(encoded):
        ids[row, : len(item.input_ids)] = item.input_ids
        labels[row, : len(item.labels)] = item.labels
    image_tokens = sum(item.num_image_tokens for item in encoded)
    real = sum(len(item.input_ids) for item in encoded)
    return Batch(
        input_ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        pixels=torch.from_numpy(pixels),
        num_samples=len(encoded),
        image_tokens=image_tokens,
        text_tokens=real - image_tokens,
        supervised_tokens=sum(item.num_supervised for item in encoded),
        padding_tokens=len(encoded) * width - real,
    )


class Normaliser:
    """uint8 pictures on the device to the tower's input: a quarter of the bytes cross the bus."""

    def __init__(self, device: torch.device) -> None:
        self._scale = torch.tensor([1 / (255 * s) for s in STD], device=device).view(1, 3, 1, 1)
        self._shift = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)], device=device).view(1, 3, 1, 1)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 [images, 3, height, width]."""
        return pixels.permute(0, 3, 1, 2).to(torch.float32).mul_(self._scale).add_(self._shift).contiguous()
