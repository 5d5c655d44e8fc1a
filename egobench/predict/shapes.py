"""The shapes of a model, read from a transformers configuration as plain data; torch is not needed to read them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

TEXTS: Final = ("qwen2", "qwen3", "llama")
"""Text models with these very matrices: q, k, v, o, and a gated feed-forward network of gate, up and down."""
TOWER: Final = "model.vision_tower"
PROJECTOR: Final = "model.multi_modal_projector"
LLM: Final = "model.language_model"
HEAD: Final = "lm_head"
PATCHES: Final = f"{TOWER}.embeddings.patch_embeddings.projection"


@dataclass(frozen=True)
class Matrix:
    """One linear layer."""

    inputs: int
    outputs: int

    @property
    def flops(self) -> int:
        """Return the FLOPs of one product, for one position."""
        return 2 * self.inputs * self.outputs


@dataclass(frozen=True)
class TowerShape:
    """A vision transformer."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    image_px: int
    patch_px: int
    channels: int
    has_qk_norm: bool = False
    """Queries and keys are normalised before their scores."""
    is_rms: bool = False
    """Its norms are RMSNorms, which transformers writes out operation by operation."""
    has_attention_bias: bool = True

    @property
    def num_others(self) -> int:
        """Return the numbers of a block that belong to no matrix: norms, layer scales and biases."""
        # Two norms (with biases, but for RMSNorms), two layer scales, biases of three matrices or six; two more norms.
        vectors = 2 * (1 + (not self.is_rms)) + 2 + 2 + 3 * self.has_attention_bias + 2 * self.has_qk_norm
        return vectors * self.hidden + self.ffn

    @property
    def num_patches(self) -> int:
        """Return the patches of one image."""
        return (self.image_px // self.patch_px) ** 2

    @property
    def num_positions(self) -> int:
        """Return the positions of one image: its patches and the class token."""
        return self.num_patches + 1

    @property
    def attention_width(self) -> int:
        """Return the summed width of all heads."""
        return self.hidden

    @property
    def patches(self) -> Matrix:
        """Return the patch embedding, a convolution that is the product of every patch with one matrix."""
        return Matrix(self.channels * self.patch_px**2, self.hidden)

    def block(self, index: int) -> str:
        """Return the name of a block."""
        return f"{TOWER}.encoder.layer.{index}"

    def matrices(self) -> dict[str, Matrix]:
        """Return the linear layers of a block, in the order in which they run."""
        square = Matrix(self.hidden, self.hidden)
        return {
            "attention.q_proj": square,
            "attention.k_proj": square,
            "attention.v_proj": square,
            "attention.projection_layer": square,
            "mlp.fc1": Matrix(self.hidden, self.ffn),
            "mlp.fc2": Matrix(self.ffn, self.hidden),
        }


@dataclass(frozen=True)
class LlmShape:
    """A decoder with grouped-query attention and a gated feed-forward network."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    is_tied: bool
    """The head is the embedding's matrix."""
    is_gated: bool = True
    """Three matrices of a feed-forward network (SwiGLU); else two (GELU), as older models have."""
    has_qk_norm: bool = False
    """Queries and keys are normalised head by head (Qwen3)."""
    has_attention_bias: bool = False
    """Queries, keys and values have a bias (Qwen2)."""

    @property
    def num_others(self) -> int:
        """Return the numbers of a block that belong to no matrix: norms and biases."""
        biases = (self.heads + 2 * self.kv_heads) * self.head_dim * self.has_attention_bias
        return 2 * self.hidden + 2 * self.head_dim * self.has_qk_norm + biases

    @property
    def is_rms(self) -> bool:
        """Tell whether its norms are RMSNorms: models with a gate have them."""
        return self.is_gated

    @property
    def attention_width(self) -> int:
        """Return the summed width of all query heads."""
        return self.heads * self.head_dim

    @property
    def head(self) -> Matrix:
        """Return the matrix that makes logits."""
        return Matrix(self.hidden, self.vocab)

    def block(self, index: int) -> str:
        """Return the name of a block."""
        return f"{LLM}.layers.{index}"

    def matrices(self) -> dict[str, Matrix]:
        """Return the linear layers of a block, in the order in which they run."""
        keys = self.kv_heads * self.head_dim
        gate = {"mlp.gate_proj": Matrix(self.hidden, self.ffn)} if self.is_gated else {}
        return {
            "self_attn.q_proj": Matrix(self.hidden, self.attention_width),
            "self_attn.k_proj": Matrix(self.hidden, keys),
            "self_attn.v_proj": Matrix(self.hidden, keys),
            "self_attn.o_proj": Matrix(self.attention_width, self.hidden),
            **gate,
            "mlp.up_proj": Matrix(self.hidden, self.ffn),
            "mlp.down_proj": Matrix(self.ffn, self.hidden),
        }


@dataclass(frozen=True)
class ModelShape:
    """Tower, projector and LLM of a vision-language model; `text_only` makes one of an LLM alone."""

    tower: TowerShape
    llm: LlmShape
    downsample_ratio: float
    """Side of the grid of image tokens over the side of the grid of patches."""

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:  # predictions of many cells look up much by the shape
        return hash((self.tower, self.llm, self.downsample_ratio))

    @property
    def num_image_tokens(self) -> int:
        """Return the positions of the LLM that one image becomes."""
        return int((self.tower.image_px // self.tower.patch_px * self.downsample_ratio) ** 2)

    def projector(self) -> dict[str, Matrix]:
        """Return the linear layers of the projector, in the order in which they run."""
        if not self.tower.layers:
            return {}
        gathered = int(self.tower.hidden / self.downsample_ratio**2)
        return {
            f"{PROJECTOR}.linear_1": Matrix(gathered, self.llm.hidden),
            f"{PROJECTOR}.linear_2": Matrix(self.llm.hidden, self.llm.hidden),
        }

    def matrices(self) -> dict[str, Matrix]:
        """Return every matrix of the model by the name of its module, patch embedding and head included."""
        found = {PATCHES: self.tower.patches}
        for part in (self.tower, self.llm):
            for index in range(part.layers):
                found |= {f"{part.block(index)}.{name}": matrix for name, matrix in part.matrices().items()}
        return found | self.projector() | {HEAD: self.llm.head}


NO_TOWER: Final = TowerShape(hidden=0, layers=0, heads=0, ffn=0, image_px=0, patch_px=1, channels=0)
"""Of an LLM alone."""


def text_only(llm: LlmShape) -> ModelShape:
    """Return an LLM without a tower, as most published measurements were made with."""
    return ModelShape(NO_TOWER, llm, 1.0)


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """Read the shapes from `config.to_dict()` or a checkpoint's config.json.

    None for an architecture whose matrices are not known here, or a configuration that leaves a size out: a guess
    would look like a measurement.
    """
    if config.get("model_type") != "internvl":
        return None
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    if vision.get("model_type") != "internvl_vision" or text.get("model_type") not in TEXTS:
        return None
    # The features of an earlier layer would leave the last ones without gradients; sliding windows and sparse
    # experts multiply less than these formulas say.
    is_whole = config.get("vision_feature_layer", -1) == -1
    if not is_whole or text.get("use_sliding_window") or text.get("num_experts"):
        return None
    try:
        return ModelShape(_tower(vision), _llm(text, config), float(config["downsample_ratio"]))
    except (KeyError, TypeError, ValueError):
        return None


def _tower(vision: Mapping[str, Any]) -> TowerShape:
    return TowerShape(
        hidden=int(vision["hidden_size"]),
        layers=int(vision["num_hidden_layers"]),
        heads=int(vision["num_attention_heads"]),
        ffn=int(vision["intermediate_size"]),
        image_px=_side(vision["image_size"]),
        patch_px=_side(vision["patch_size"]),
        channels=int(vision.get("num_channels", 3)),
        has_qk_norm=bool(vision.get("use_qk_norm", False)),
        is_rms=vision.get("norm_type", "layer_norm") == "rms_norm",
        has_attention_bias=bool(vision.get("attention_bias", False)),
    )


def _llm(text: Mapping[str, Any], config: Mapping[str, Any]) -> LlmShape:
    hidden, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
    return LlmShape(
        hidden=hidden,
        layers=int(text["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(text["num_key_value_heads"]),
        head_dim=int(text.get("head_dim") or hidden // heads),
        ffn=int(text["intermediate_size"]),
        vocab=int(text["vocab_size"]),
        # Said at the top in what transformers writes today, in the text part by older versions; its default is tied.
        is_tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))),
        has_qk_norm=text["model_type"] == "qwen3",
        has_attention_bias=text["model_type"] == "qwen2" or bool(text.get("attention_bias", False)),
    )


def _side(size: Any) -> int:
    """Return the side of a square that is given as a number or as [height, width]."""
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise ValueError(size)
    return int(sides.pop())
