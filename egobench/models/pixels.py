"""Pictures to normalised tensors, as InternVL's image processor does for one tile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def to_array(image: Image.Image, image_px: int) -> npt.NDArray[np.uint8]:
    """Resize to a square, bicubic, without keeping the aspect ratio (one InternVL tile)."""
    rgb = image.convert("RGB")
    if rgb.size != (image_px, image_px):
        rgb = rgb.resize((image_px, image_px), Image.Resampling.BICUBIC)
    return np.asarray(rgb, dtype=np.uint8)


def from_uint8(
    batch: npt.NDArray[np.uint8], device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Normalise uint8 pictures [n, height, width, 3] to [n, 3, height, width] on `device`."""
    raw = torch.from_numpy(np.ascontiguousarray(batch)).to(device or torch.device("cpu"))
    scale = torch.tensor([1 / (255 * s) for s in STD], device=raw.device).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)], device=raw.device).view(1, 3, 1, 1)
    return (raw.permute(0, 3, 1, 2).to(torch.float32) * scale + shift).to(dtype).contiguous()


def from_images(
    images: Sequence[Image.Image],
    image_px: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Resize and normalise PIL pictures."""
    return from_uint8(np.stack([to_array(image, image_px) for image in images]), device, dtype)
