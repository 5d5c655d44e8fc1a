"""The shapes of the models that can be built by name.

InternVL3 numbers are the `config.json` values of the `OpenGVLab/InternVL3-*-hf` checkpoints; the parameter
totals that they give were checked against the published ones (0.94B, 2.09B, 7.94B, 15.12B, 38.39B).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionDims:
    """The vision tower."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    image_px: int = 448
    patch_px: int = 14
    norm: str = "layer_norm"
    qk_norm: bool = False
    attention_bias: bool = True
    layer_scale: float = 0.1


@dataclass(frozen=True)
class TextDims:
    """The language model (Qwen2)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int = 151674
    max_positions: int = 32768
    rope_theta: float = 1_000_000.0


@dataclass(frozen=True)
class ModelDims:
    """Tower, language model, and how they are joined."""

    vision: VisionDims
    text: TextDims
    image_token_id: int = 151667
    is_tied: bool = False


_VIT_300M = VisionDims(1024, 24, 16, 4096)
_VIT_6B = VisionDims(3200, 45, 25, 12800, norm="rms_norm", qk_norm=True, attention_bias=False)
TINY_VOCAB = 768

NAMED: dict[str, ModelDims] = {
    "internvl3-1b": ModelDims(_VIT_300M, TextDims(896, 24, 14, 2, 4864)),
    "internvl3-2b": ModelDims(_VIT_300M, TextDims(1536, 28, 12, 2, 8960)),
    "internvl3-8b": ModelDims(_VIT_300M, TextDims(3584, 28, 28, 4, 18944)),
    "internvl3-14b": ModelDims(_VIT_300M, TextDims(5120, 48, 40, 8, 13824)),
    "internvl3-38b": ModelDims(_VIT_6B, TextDims(5120, 64, 40, 8, 27648)),
    "internvl-small": ModelDims(
        VisionDims(192, 4, 4, 768),
        TextDims(256, 4, 4, 2, 1024, vocab=32768, max_positions=8192),
        image_token_id=5,
    ),
    "internvl-edge": ModelDims(
        VisionDims(384, 6, 6, 1536, image_px=224),
        TextDims(1024, 8, 16, 4, 4096, vocab=32768, max_positions=8192),
        image_token_id=5,
    ),
    "egotiny": ModelDims(
        VisionDims(128, 3, 4, 256, image_px=64, patch_px=8, layer_scale=1.0),
        TextDims(128, 3, 4, 2, 384, vocab=TINY_VOCAB, max_positions=2048, rope_theta=10_000.0),
        image_token_id=5,
    ),
}
