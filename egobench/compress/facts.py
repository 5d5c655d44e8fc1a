"""What the record says of a quantization."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from egobench.compress.calibration import WHERE, CalibrationSet
from egobench.compress.checkpoint import size_of
from egobench.compress.choice import counted
from egobench.errors import InvalidInput, Mistake


def facts_of(
    kind: str,
    source: Path,
    target: Path,
    names: tuple[Sequence[str], Sequence[str]],
    *,
    library: str,
    layout: str,
    bits: int,
    group_size: int | None,
    in_memory: str,
    calibration: CalibrationSet | None,
    quantize_time_s: float,
) -> dict[str, Any]:
    """Gather the facts of one quantization; `names` are the layers that were quantized, and those that were left.

    `group_size` is None where each output has one scale; `in_memory` says what becomes of the layout when it is loaded.
    """
    quantized, left = names
    return {
        "kind": kind,
        "library": library,
        "layout": layout,
        "bits": bits,
        "group_size": group_size,
        "in_memory": in_memory,
        "num_quantized": len(quantized),
        "quantized": counted(quantized),
        "num_left": len(left),
        "left": counted(left),
        "source_bytes": size_of(source),
        "size_bytes": size_of(target),
        "calibration": calibration.facts() if calibration is not None else None,
        "quantize_time_s": quantize_time_s,
    }


def needed(kind: str, calibration: CalibrationSet | None) -> CalibrationSet:
    """Return the set that a kind cannot do without.

    Raises:
        InvalidInput: there is none.
    """
    if calibration is None or not calibration.samples:
        raise InvalidInput([Mistake(WHERE, f"{kind} needs a calibration set", "at least one question with a picture")])
    return calibration
