"""Which matrices are quantized and which are left, under the names that their readers have for them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from torch import nn

from egobench.errors import InvalidInput, Mistake
from egobench.spec.quantization import Quantization

LLM: Final = "model.language_model."
NOT_LLM: Final = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
"""As transformers names them at run time, which is what it compares with; hub names would match nothing."""
HUB_NAMES: Final = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}
"""Beginning of a name at run time -> in checkpoint files, and in vLLM."""


def hub_name(name: str) -> str:
    """Return the name in checkpoint files of what has this name at run time."""
    for live, stored in HUB_NAMES.items():
        if name.startswith(live):
            return stored + name.removeprefix(live)
    return name


def is_tied(config: dict[str, Any]) -> bool:
    """Say whether the head is the embedding: then it is left as it is."""
    return bool(config.get("tie_word_embeddings", True))


def left_alone(config: dict[str, Any], how: Quantization) -> list[str]:
    """Name the parts that stay, at run time and, where they have another one, by vLLM's name."""
    if how.parts == "all":
        return ["lm_head"] if is_tied(config) else []
    return [*NOT_LLM, *(hub_name(f"{name}.").removesuffix(".") for name in NOT_LLM)]


def split(model: nn.Module, config: dict[str, Any], how: Quantization) -> tuple[list[str], list[str]]:
    """Return the names of the linear layers that are quantized, and of those that are left."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    left = left_alone(config, how)
    stays = {name for name in names if any(name == part or name.startswith(f"{part}.") for part in left)}
    return [name for name in names if name not in stays], [name for name in names if name in stays]


def counted(names: Iterable[str]) -> dict[str, int]:
    """Count names that differ in the numbers of their blocks only: a model has hundreds of them."""
    return dict(Counter(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names))


def check_4bit(kind: str, config: dict[str, Any], how: Quantization) -> None:
    """Refuse what the 4-bit kinds cannot do; all of it at once.

    Raises:
        InvalidInput: parts other than the LLM, or a group size that does not divide its layers.
    """
    mistakes = []
    if how.parts != "llm":
        what = f"{kind} quantizes the blocks of the LLM only, but parts is {how.parts!r}"
        todo = "choose an 8-bit kind for the other parts"
        mistakes.append(Mistake("quantization.parts", what, "allowed: llm", todo))
    widths = _widths(config["text_config"])
    wrong = {name: width for name, width in widths.items() if width % how.group_size}
    if wrong:
        listed = ", ".join(f"{name} {width}" for name, width in wrong.items())
        fitting = [size for size in (32, 64, 128) if not any(width % size for width in widths.values())]
        allowed = ", ".join(map(str, fitting)) or "none: this model has no 4-bit variant"
        what = f"{how.group_size} does not divide {listed}"
        mistakes.append(Mistake("quantization.group_size", what, f"allowed: {allowed}"))
    if mistakes:
        raise InvalidInput(mistakes)


def _widths(text: dict[str, Any]) -> dict[str, int]:
    """Return the numbers of inputs of an LLM block's matrices."""
    heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
    attention = heads * int(text.get("head_dim") or hidden // heads)
    return {"hidden_size": hidden, "intermediate_size": int(text["intermediate_size"]), "attention_width": attention}
