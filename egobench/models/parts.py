"""The parts of a vision-language model, whatever wraps it (PEFT, DDP)."""

from __future__ import annotations

from typing import Any

from torch import nn


def core(model: Any) -> Any:
    """Return the transformers model inside DDP and PEFT wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def tower(model: Any) -> nn.Module:
    """Return the vision tower."""
    part: nn.Module = core(model).model.vision_tower
    return part


def projector(model: Any) -> nn.Module:
    """Return what maps the tower's features into the LLM."""
    part: nn.Module = core(model).model.multi_modal_projector
    return part


def llm(model: Any) -> nn.Module:
    """Return the language model without its head."""
    part: nn.Module = core(model).model.language_model
    return part


def head(model: Any) -> nn.Module:
    """Return the linear layer that makes logits."""
    part: nn.Module = core(model).lm_head
    return part


def tower_blocks(model: Any) -> list[nn.Module]:
    """Return the tower's transformer blocks, in order."""
    return list(core(model).model.vision_tower.encoder.layer)


def llm_blocks(model: Any) -> list[nn.Module]:
    """Return the LLM's transformer blocks, in order."""
    return list(core(model).model.language_model.layers)
