"""How a trained model is quantized: `quantization:` of a variant. Part of the variant's cell."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from egobench.spec.strict import Strict


class Calibration(Strict):
    """Training questions, with their pictures, that scales and ranges are measured on."""

    num_samples: int = Field(default=64, ge=1, le=65536)
    """Questions drawn from the training split; time grows in proportion."""
    seed: int = 0
    """Of the draw: the same seed and data give the same questions."""
    max_length: int = Field(default=2048, ge=16)
    """Most tokens of a question with its pictures and answer; a longer question is cut, its pictures never."""


class Quantization(Strict):
    """What is quantized, and how finely; which number format is the variant's kind."""

    group_size: Literal[32, 64, 128] = 128
    """Weights of a row that share a scale, in the 4-bit kinds; it has to divide the width of every layer."""
    parts: Literal["llm", "all"] = "llm"
    """`llm`: the LLM's blocks. `all`: the vision tower, the projector and the head too, in the 8-bit kinds only.

    Whatever is not quantized is kept in bfloat16."""
    calibration: Calibration = Calibration()
    """Of the kinds that calibrate: awq, gptq, fp8_static."""
