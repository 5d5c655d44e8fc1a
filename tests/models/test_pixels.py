"""Pictures to tensors, against the plain way of writing it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from egobench.models.pixels import MEAN, STD, from_images, from_uint8, to_array


@pytest.fixture
def image() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def plain(image: Image.Image, px: int) -> np.ndarray:
    small = np.asarray(image.convert("RGB").resize((px, px), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    return ((small - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)


def test_matches_a_plain_reference(image: Image.Image) -> None:
    ours = from_images([image, image.rotate(90)], 28)
    assert ours.shape == (2, 3, 28, 28) and ours.is_contiguous()
    assert np.allclose(ours[0].numpy(), plain(image, 28), atol=1e-5)
    assert np.allclose(ours[1].numpy(), plain(image.rotate(90), 28), atol=1e-5)


def test_right_size_is_not_resampled(image: Image.Image) -> None:
    square = image.crop((0, 0, 50, 50))
    assert np.array_equal(to_array(square, 50), np.asarray(square))


def test_other_modes_become_rgb(image: Image.Image) -> None:
    assert to_array(image.convert("L"), 16).shape == (16, 16, 3)
    assert to_array(image.convert("RGBA"), 16).shape == (16, 16, 3)


def test_dtype_is_what_was_asked(image: Image.Image) -> None:
    batch = np.stack([to_array(image, 16)])
    assert from_uint8(batch, dtype=torch.bfloat16).dtype == torch.bfloat16
