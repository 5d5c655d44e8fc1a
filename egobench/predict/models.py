"""The shapes of a workload's model: of a named one from its row, of a checkpoint folder from its config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from egobench.predict.shapes import TEXTS, LlmShape, ModelShape, TowerShape, shape_of
from egobench.spec.dims import NAMED, ModelDims
from egobench.spec.workload import ModelSpec

DOWNSAMPLE: Final = 0.5
"""Of every named model: 2 x 2 patches become one image token."""
_VISION: Final = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size",
)  # fmt: skip
_TEXT: Final = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size",
)  # fmt: skip


@dataclass(frozen=True)
class Unknown:
    """Why there is no number."""

    because: str


def shape_of_dims(dims: ModelDims) -> ModelShape:
    """Return the shapes of a row of `spec/dims.py`; `shape_of` says the same of the model built from it."""
    vision, text = dims.vision, dims.text
    return ModelShape(
        TowerShape(
            hidden=vision.hidden,
            layers=vision.layers,
            heads=vision.heads,
            ffn=vision.ffn,
            image_px=vision.image_px,
            patch_px=vision.patch_px,
            channels=3,
            has_qk_norm=vision.qk_norm,
            is_rms=vision.norm == "rms_norm",
            has_attention_bias=vision.attention_bias,
        ),
        LlmShape(
            hidden=text.hidden,
            layers=text.layers,
            heads=text.heads,
            kv_heads=text.kv_heads,
            head_dim=text.hidden // text.heads,
            ffn=text.ffn,
            vocab=text.vocab,
            is_tied=dims.is_tied,
            has_attention_bias=True,
        ),
        DOWNSAMPLE,
    )


def shape_of_model(model: ModelSpec, folder: Path) -> ModelShape | Unknown:
    """Return the shapes of a workload's model; `folder`: where its relative path starts from."""
    if model.path is not None:
        return shape_of_file(folder / Path(model.path).expanduser() / "config.json")
    if model.name not in NAMED:
        return Unknown(f"no model is called {model.name!r}")
    return shape_of_dims(NAMED[model.name])


def shape_of_file(path: Path) -> ModelShape | Unknown:
    """Return the shapes that a config.json gives."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Unknown(f"{path} is not on this machine")
    except (OSError, ValueError) as error:
        return Unknown(f"{path} cannot be read: {error}")
    if not isinstance(config, dict):
        return Unknown(f"{path} holds no mapping")
    wrong = ", ".join(wrong_sizes(config))
    if wrong:
        return Unknown(f"{path}: {wrong}")
    return shape_of(config) or Unknown(f"{path}: {_what_is_unknown(config)}")


def wrong_sizes(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is missing of a configuration, and what cannot be a size; nothing of an unknown architecture."""
    if config.get("model_type") != "internvl":
        return
    for part, names in (("vision_config", _VISION), ("text_config", _TEXT)):
        section = config.get(part)
        if not isinstance(section, dict):
            yield f"{part} is missing"
            continue
        for name in names:
            yield from _wrong_size(f"{part}.{name}", section.get(name))
    ratio = config.get("downsample_ratio")
    if not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        yield "downsample_ratio is missing" if ratio is None else f"downsample_ratio is {ratio!r}, not within 0 and 1"


def _wrong_size(name: str, value: Any) -> Iterator[str]:
    if value is None:
        yield f"{name} is missing"
    elif any(not isinstance(one, int) or one < 1 for one in (value if isinstance(value, list) else [value])):
        yield f"{name} is {value!r}, not a positive whole number"


def _what_is_unknown(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type")
    if kind != "internvl":
        return f"the formulas know model_type 'internvl', not {kind!r}"
    text = config["text_config"].get("model_type")
    if text not in TEXTS:
        return f"the formulas know text models {', '.join(TEXTS)}, not {text!r}"
    return "its tower, a sliding window, experts or an earlier vision layer are not what the formulas are for"


def at_px(shape: ModelShape, image_px: int) -> ModelShape:
    """Return the same model for pictures of another size."""
    return replace(shape, tower=replace(shape.tower, image_px=image_px))
