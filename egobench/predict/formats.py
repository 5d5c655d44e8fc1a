"""Bytes of a number: what a precision means under a strategy, in a training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from egobench.predict.constants import Software

HALF: Final = ("bf16_pure",)
AUTOCAST: Final = ("bf16", "fp16", "fp8")
ZERO: Final = ("zero1", "zero2", "zero3")


@dataclass(frozen=True)
class Formats:
    """Bytes of a number, by what it belongs to."""

    trained: int
    frozen_matrix: int
    frozen_other: int
    compute: int
    """Of a matrix product."""
    stream: int
    """Between blocks."""
    adapter: int
    gradient: int
    moment: int
    master: int
    """A copy that the optimizer updates beside the weights, which ZeRO has beside fp32 ones too; 0: none."""
    is_autocast: bool
    """Inputs are cast at every product."""
    casts_weights: bool = False
    """So are trained weights; FSDP has them in 16 bits before autocast sees them."""


def formats(precision: str, strategy: str, software: Software, method: str) -> Formats:
    """Return the formats that a precision means under a strategy, in a training loop."""
    if precision in HALF:
        adapter = software.adapter_bytes or 2
        frozen = 4 if software.is_stream_fp32 else 2
        return Formats(2, 2, frozen, 2, frozen, adapter, 2, 2, 0, is_autocast=False)
    if precision not in AUTOCAST:
        return Formats(4, 4, 4, 4, 4, 4, 4, 4, 4 if strategy in ZERO else 0, is_autocast=False)
    if strategy in ZERO:
        return Formats(2, 2, 2, 2, 2, 2, 2, 4, 4, is_autocast=False)
    is_cast = strategy != "fsdp" or software.fsdp == 1
    # Where all is trained, the embedding is in 32 bits, and so is what comes out of it; FSDP has 16-bit copies.
    is_wide = software.is_stream_fp32 or (method == "full" and strategy != "fsdp")
    frozen = 2 if software.keeps_16_bit and not is_wide else 4
    stream = frozen if is_cast else 2
    return Formats(4, 2, frozen, 2, stream, 4, 4, 4, 0, is_autocast=is_cast, casts_weights=strategy != "fsdp")
