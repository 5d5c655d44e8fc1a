"""Smaller models from trained ones: one file per way, named in a table."""

from __future__ import annotations

from typing import Final

QUANTIZERS: Final[dict[str, str]] = {
    "awq": "egobench.compress.awq:quantize",
    "gptq": "egobench.compress.gptq:quantize",
    "int8": "egobench.compress.integer:quantize_int8",
    "int8_dynamic": "egobench.compress.integer:quantize_int8_dynamic",
    "int4": "egobench.compress.integer:quantize_int4",
    "fp8": "egobench.compress.float8:quantize_fp8",
    "fp8_static": "egobench.compress.float8:quantize_fp8_static",
}
"""Kind of a variant -> `quantize(source, target, how, calibration) -> facts for the record`."""
CALIBRATED: Final = frozenset({"awq", "gptq", "fp8_static"})
"""The kinds that need a `CalibrationSet`; the others take None, or leave it alone."""
