"""Which activations are dropped in the forward pass and recomputed in the backward pass."""

from __future__ import annotations

from typing import Any


def none(model: Any) -> Any:
    """Keep every activation, as a freshly built model does."""
    return model


def full(model: Any) -> Any:
    """Keep only the input of every block of the tower and of the LLM."""
    # transformers 5.2x renamed it; both take the keyword arguments of torch.utils.checkpoint first.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    return model
