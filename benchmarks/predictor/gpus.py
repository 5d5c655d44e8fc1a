"""GPUs that published rows were measured on, those without a datasheet row in egobench among them."""

from __future__ import annotations

import dataclasses
import re
from typing import Final

from benchmarks.predictor.columns import Unmapped
from egobench.hardware import GPUS, Gpu


def _gpu(
    name: str, memory_gb: float, bandwidth_tb_per_s: float, half: float, link: tuple[str, float],
    capability: tuple[int, int] = (8, 9), source: str = "vendor's datasheet, from memory", fp8: float | None = None,
    has_inline_ecc: bool = False,
) -> Gpu:  # fmt: skip
    peaks = {"bf16": half * 1e12, "fp16": half * 1e12} | ({} if fp8 is None else {"fp8": fp8 * 1e12})
    return Gpu(
        name, round(memory_gb * 1e9), bandwidth_tb_per_s * 1e12, peaks, capability, link[0], link[1] * 1e9, (), source,
        has_inline_ecc,
    )  # fmt: skip


_KNOWN: Final[tuple[tuple[str, Gpu], ...]] = (
    (r"a100.*pcie", GPUS["A100-80GB PCIe"]),
    (r"a100.*40", GPUS["A100-40GB SXM"]),
    (r"a100", GPUS["A100-80GB SXM"]),
    # The same chip with a narrower NVLink; its name stays, by which its rates are found.
    (r"a800", dataclasses.replace(GPUS["A100-80GB SXM"], link_bytes_per_s=200e9)),
    (
        r"h100.*9[56]",
        _gpu(
            "H100-96GB HBM2e", 96, 2.4, 989, ("NVLink4", 450), (9, 0),
            "torchtitan's benchmarks/: 'H100 with 96 GB of HBM2e', 500 W", 1979,
        ),
    ),
    (r"h100.*94", _gpu("H100-94GB NVL", 94, 3.9, 835, ("PCIe5", 63), (9, 0), fp8=1671)),
    (r"h100.*pcie", GPUS["H100-80GB PCIe"]),
    (r"h100", GPUS["H100-80GB SXM"]),
    (r"h800", dataclasses.replace(GPUS["H100-80GB SXM"], link_bytes_per_s=200e9)),
    (r"h200", GPUS["H200-141GB SXM"]),
    (r"h20(?!0)", _gpu("H20-96GB", 96, 4.0, 148, ("NVLink4", 450), (9, 0))),
    (r"b200", _gpu("B200-180GB", 180, 8.0, 2250, ("NVLink5", 900), (10, 0))),
    (r"l40s", GPUS["L40S-48GB"]),
    (r"l40", _gpu("L40-48GB", 48, 0.864, 181, ("PCIe4", 31), has_inline_ecc=True)),
    (r"\bl4\b", GPUS["L4-24GB"]),
    (r"4080", _gpu("RTX4080-16GB", 16, 0.717, 97.5, ("PCIe4 (no P2P)", 31))),
    (r"4090", GPUS["RTX4090-24GB"]),
    (r"3090", GPUS["RTX3090-24GB"]),
    (r"6000.?ada", _gpu("RTX 6000 Ada-48GB", 48, 0.96, 364, ("PCIe4", 31))),
    (r"a6000", GPUS["RTX A6000-48GB"]),
    (r"a5000", _gpu("RTX A5000-24GB", 24, 0.768, 111, ("PCIe4", 31))),
    (r"\ba10g?\b", GPUS["A10-24GB"]),
    (r"\bt4\b", GPUS["T4-16GB"]),
)  # fmt: skip
"""What a name has in it -> datasheet; the first counts."""


def gpu_named(name: str) -> Gpu:
    """Return the GPU that a table names.

    Raises:
        Unmapped: it names none that is known, or a class of them.
    """
    text = name.lower()
    gpu = None if "class" in text else next((gpu for pattern, gpu in _KNOWN if re.search(pattern, text)), None)
    if gpu is None:
        raise Unmapped(f"no one kind of GPU: {name}")
    return gpu
