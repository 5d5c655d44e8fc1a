"""What datasheets say about GPUs: one row each, with its source; an unknown GPU has no row and no guess.

Peaks are dense (no structured sparsity), without overclocking. A dtype without tensor cores of its
own is left out of `peak_flops`, so that a utilisation is then empty instead of wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_FORMAT_OF_PRODUCTS: Final = {"bf16_pure": "bf16"}
"""Precision -> format that it multiplies in, where they do not share a name."""
_TERA = 1e12
_GIGA = 1e9
_NVIDIA = "https://www.nvidia.com/"
_TABLES = "https://github.com/stas00/ml-engineering (compute/accelerator)"


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    """Name used in a site file."""
    memory_bytes: int
    """Nominal memory of the datasheet (its GB are 1e9 bytes here); a driver shows somewhat less or more."""
    bandwidth_bytes_per_s: float
    """Of its own memory."""
    peak_flops: dict[str, float]
    """Dense FLOP/s (OP/s for int8) by dtype: fp32, tf32, bf16, fp16, fp8, int8; a missing dtype is not known."""
    compute_capability: tuple[int, int]
    """CUDA compute capability, https://developer.nvidia.com/cuda-gpus."""
    link: str
    """How it reaches other GPUs of its node."""
    link_bytes_per_s: float | None
    """One direction; None: not known."""
    device_names: tuple[str, ...]
    """What NVML and torch call it."""
    source: str
    """Where the row comes from."""
    has_inline_ecc: bool = False
    """Its memory holds its own check bits, as GDDR of servers does: a sixteenth is missing (a T4 shows 15 GiB)."""

    def peak(self, dtype: str) -> float | None:
        """Return the dense peak of a dtype in FLOP/s, None where it is not known."""
        return self.peak_flops.get(dtype)

    def peak_at(self, precision: str) -> float | None:
        """Return the dense peak of a value of the precision axis in FLOP/s, None where it is not known.

        It is that of the fastest products of the precision: under `fp8` those of the LLM's blocks are in FP8, and
        tower and head, which are in bf16, are held against the same peak.
        """
        return self.peak(_FORMAT_OF_PRODUCTS.get(precision, precision))


def _row(
    name: str,
    memory_gb: float,
    bandwidth_tb_per_s: float,
    peaks_tera: dict[str, float],
    capability: tuple[int, int],
    link: tuple[str, float | None],
    device_names: tuple[str, ...],
    source: str,
    *,
    has_inline_ecc: bool = False,
) -> Gpu:
    return Gpu(
        name=name,
        memory_bytes=round(memory_gb * _GIGA),
        bandwidth_bytes_per_s=bandwidth_tb_per_s * _TERA,
        peak_flops={dtype: peak * _TERA for dtype, peak in peaks_tera.items()},
        compute_capability=capability,
        link=link[0],
        link_bytes_per_s=None if link[1] is None else link[1] * _GIGA,
        device_names=device_names,
        source=source,
        has_inline_ecc=has_inline_ecc,
    )


def _peaks(fp32: float, tf32: float | None, half: float, fp8: float | None, int8: float) -> dict[str, float]:
    """Return the peaks of a GPU whose fp16 and bf16 tensor cores are equally fast."""
    known = {"fp32": fp32, "tf32": tf32, "bf16": half, "fp16": half, "fp8": fp8, "int8": int8}
    return {dtype: peak for dtype, peak in known.items() if peak is not None}


_HOPPER_SXM = _peaks(67, 494.5, 989, 1979, 1979)
_AMPERE_SXM = _peaks(19.5, 156, 312, None, 624)
_A100_SHEET = f"{_NVIDIA}en-us/data-center/a100/ and {_TABLES}"
_H100_SHEET = f"{_NVIDIA}en-us/data-center/h100/ and {_TABLES}"

GPUS: Final[dict[str, Gpu]] = {
    gpu.name: gpu
    for gpu in (
        _row(
            "A100-40GB SXM", 40, 1.555, _AMPERE_SXM, (8, 0), ("NVLink3", 300),
            ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"), _A100_SHEET,
        ),
        _row(
            "A100-80GB SXM", 80, 2.0, _AMPERE_SXM, (8, 0), ("NVLink3", 300),
            ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"), _A100_SHEET,
        ),
        _row(
            "A100-80GB PCIe", 80, 1.94, _AMPERE_SXM, (8, 0), ("PCIe4", 31),
            ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"), _A100_SHEET,
        ),
        _row(
            "H100-80GB SXM", 80, 3.35, _HOPPER_SXM, (9, 0), ("NVLink4", 450),
            ("NVIDIA H100 80GB HBM3",), _H100_SHEET,
        ),
        _row(
            "H100-80GB PCIe", 80, 2.0, _peaks(51, 378, 756, 1513, 1513), (9, 0), ("PCIe5", 63),
            ("NVIDIA H100 PCIe",), _H100_SHEET,
        ),
        _row(
            "H200-141GB SXM", 141, 4.8, _HOPPER_SXM, (9, 0), ("NVLink4", 450),
            ("NVIDIA H200",), f"{_NVIDIA}en-us/data-center/h200/ and {_TABLES}",
        ),
        _row(
            "L40S-48GB", 48, 0.86, _peaks(91.6, 183, 362, 733, 733), (8, 9), ("PCIe4", 31),
            ("NVIDIA L40S",), f"{_NVIDIA}en-us/data-center/l40s/ and {_TABLES}", has_inline_ecc=True,
        ),
        _row(
            "L4-24GB", 24, 0.3, _peaks(30.3, 60, 121, 242, 242), (8, 9), ("PCIe4", 31),
            ("NVIDIA L4",), f"{_NVIDIA}en-us/data-center/l4/ (dense = half of the sparse figure)", has_inline_ecc=True,
        ),
        _row(
            # fp16 tensor cores only: no bf16, no tf32.
            "T4-16GB", 16, 0.32, {"fp32": 8.1, "fp16": 65, "int8": 130}, (7, 5), ("PCIe3", 15.75),
            ("Tesla T4", "NVIDIA T4"), f"{_NVIDIA}en-us/data-center/tesla-t4/", has_inline_ecc=True,
        ),
        _row(
            "RTX4090-24GB", 24, 1.008, _peaks(82.6, 82.6, 165.2, 330, 660), (8, 9), ("PCIe4 (no P2P)", 31),
            ("NVIDIA GeForce RTX 4090",), "NVIDIA Ada whitepaper (not re-checked; fp32 accumulation)",
        ),
        _row(
            "RTX3090-24GB", 24, 0.936, _peaks(35.6, 35.6, 71, None, 284), (8, 6), ("PCIe4", 31),
            ("NVIDIA GeForce RTX 3090",), "NVIDIA GA102 whitepaper (not re-checked; fp32 accumulation)",
        ),
        _row(
            "A10-24GB", 24, 0.6, _peaks(31.2, 62.5, 125, None, 250), (8, 6), ("PCIe4", 31),
            ("NVIDIA A10",), f"{_NVIDIA}en-us/data-center/products/a10-gpu/ (not re-checked)", has_inline_ecc=True,
        ),
        _row(
            "RTX A6000-48GB", 48, 0.768, _peaks(38.7, 77, 155, None, 310), (8, 6), ("PCIe4 (+NVLink)", 31),
            ("NVIDIA RTX A6000",), f"{_NVIDIA}en-us/design-visualization/rtx-a6000/ (not re-checked)",
        ),
        _row(
            "Jetson AGX Orin 64GB", 64, 0.2048, _peaks(5.3, None, 42.5, None, 170), (8, 7), ("none", None),
            ("Orin",), f"{_NVIDIA}en-us/autonomous-machines/embedded-systems/jetson-orin/ (not re-checked)",
        ),
    )
}  # fmt: skip
"""Name -> datasheet."""


def find_gpu(name: str | None) -> Gpu | None:
    """Return the row of a site file's `gpu`, None for an unknown one."""
    return GPUS.get(name) if name is not None else None


def gpu_of_device(device_name: str) -> Gpu | None:
    """Return the row of what NVML or torch calls a GPU, None for an unknown one."""
    return next((gpu for gpu in GPUS.values() if device_name in gpu.device_names), None)
