"""Which parameters are trained; a method marks them in place and returns the model."""

from __future__ import annotations

from torch import nn


def full(model: nn.Module) -> nn.Module:
    """Train every parameter: tower, projector and LLM."""
    return model.requires_grad_(True)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return (all, trainable) parameters; a tied one counts once."""
    held = list(model.parameters())
    return sum(p.numel() for p in held), sum(p.numel() for p in held if p.requires_grad)
