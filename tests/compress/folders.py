"""What the tests of quantization share: egotiny, questions to calibrate on, and questions to compare logits on."""

from __future__ import annotations

from pathlib import Path

import torch

from egobench.compress.calibration import CalibrationSet
from egobench.compress.load import load_quantized
from egobench.data import source
from egobench.data.source import DataSet
from egobench.models.internvl import EGOTINY, tokenizer_of
from egobench.spec.quantization import Calibration

CPU = torch.device("cpu")
PX, NUM_IMAGE_TOKENS = 64, 16


def egoworld(cache: Path, split: str, number: int) -> DataSet:
    spec = {"format": "egoworld", "domain": "home", f"num_{split}": number}
    return source.load(spec, split, cache_dir=cache, image_px=PX)  # type: ignore[arg-type]


def drawn(
    data: DataSet, number: int, seed: int = 0, max_length: int = 128, held_out: DataSet | None = None
) -> CalibrationSet:
    how = Calibration(num_samples=number, seed=seed, max_length=max_length)
    return CalibrationSet.draw(
        data, tokenizer_of(EGOTINY), how, num_image_tokens=NUM_IMAGE_TOKENS, image_px=PX, held_out=held_out
    )


@torch.no_grad()
def logits(model: torch.nn.Module, asked: CalibrationSet) -> torch.Tensor:
    """Return the logits [tokens, vocabulary] of all questions, each asked alone."""
    return torch.cat([model(**inputs).logits.float()[0] for inputs in asked.inputs()])


def error(folder: Path, asked: CalibrationSet, plain: torch.Tensor) -> float:
    """Return the relative error of a folder's logits, computed in fp32."""
    made = logits(load_quantized(folder, CPU, torch.float32).model, asked)
    return float((made - plain).norm() / plain.norm())
