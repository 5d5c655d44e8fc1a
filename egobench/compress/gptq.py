"""GPTQ: weights rounded column by column, each error made good in the columns that follow (arXiv 2210.17323)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from egobench.compress.calibration import CalibrationSet
from egobench.compress.facts import needed
from egobench.compress.packed import pack
from egobench.spec.quantization import Quantization


def quantize(source: Path, target: Path, how: Quantization, calibration: CalibrationSet | None) -> dict[str, Any]:
    """Write `target` in GPTQ's layout, 4 bit, symmetric; return the facts.

    Raises:
        InvalidInput: the folder cannot be quantized so, or there is no calibration set.
        EnvironmentProblem: a package is missing, or the disk is full.
    """
    drawn = needed("gptq", calibration)

    def settings(device: str) -> Any:
        from gptqmodel.quantization.config import GPTQConfig

        # `original`: the other way to pack compiles C++ for half a minute, once per machine.
        return GPTQConfig(bits=4, group_size=how.group_size, device=device, offload_to_disk=False, pack_impl="original")

    return pack(
        "gptq", source, target, how, settings,
        layout="gptq", rows=list(drawn.inputs()), calibration=drawn,
    )  # fmt: skip
