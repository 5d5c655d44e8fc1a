"""What the tests of inference share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from egobench.models.prompt import Encoded

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Fineness:
    """How fine weights are quantized, as `Quantization` says it."""

    group_size: int = 128
    parts: str = "all"


@dataclass(frozen=True)
class Asked:
    """Real questions of different lengths, and their pictures."""

    encoded: tuple[Encoded, ...]
    pixels: npt.NDArray[np.uint8]

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        return [item.prompt_ids for item in self.encoded]
