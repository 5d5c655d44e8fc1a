"""AWQ: 4-bit weights, rounded after the channels that activations weigh most have been scaled up (arXiv 2306.00978)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from egobench.compress.calibration import CalibrationSet
from egobench.compress.checkpoint import config_of
from egobench.compress.facts import needed
from egobench.compress.packed import pack
from egobench.spec.quantization import Quantization


def quantize(source: Path, target: Path, how: Quantization, calibration: CalibrationSet | None) -> dict[str, Any]:
    """Write `target` in AutoAWQ's gemm layout, with a zero point per group; return the facts.

    Raises:
        InvalidInput: the folder cannot be quantized so, or there is no calibration set.
        EnvironmentProblem: a package is missing, or the disk is full.
    """
    drawn = needed("awq", calibration)
    rows = list(of_one_length(drawn, int(config_of(source).get("image_token_id", -1))))

    def settings(device: str) -> Any:
        from gptqmodel.quantization.config import AWQConfig

        return AWQConfig(
            bits=4, group_size=how.group_size, sym=False, format="gemm", device=device, offload_to_disk=False
        )

    # Its default kernel for this layout needs a GPU.
    return pack(
        "awq", source, target, how, settings,
        layout="awq gemm", rows=rows, calibration=drawn, cpu_backend="AWQ_TORCH",
    )  # fmt: skip


def of_one_length(calibration: CalibrationSet, image_token_id: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the calibration questions, each filled up to the longest with questions and answers of the next ones.

    GPTQModel searches scales on one stacked batch; of rows that differ in length it silently keeps the last alone.
    """
    ids = [list(item.input_ids) for item in calibration.encoded]
    texts = [row[_end_of_images(row, image_token_id) :] for row in ids]
    longest = max(map(len, ids))
    for number, inputs in enumerate(calibration.inputs()):
        row, following = list(ids[number]), number
        while len(row) < longest:
            following = (following + 1) % len(texts)
            row += texts[following]
        filled = torch.tensor([row[:longest]])
        yield {**inputs, "input_ids": filled, "attention_mask": torch.ones_like(filled)}


def _end_of_images(row: list[int], image_token_id: int) -> int:
    return len(row) - row[::-1].index(image_token_id) if image_token_id in row else 0
