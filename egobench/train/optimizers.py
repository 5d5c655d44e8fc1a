"""Optimizers; each takes the model and the recipe, and updates what requires a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from egobench.spec.workload import Recipe


def adamw(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build AdamW in its foreach form: few kernels, and a temporary the size of the parameters."""
    return torch.optim.AdamW(_groups(model, recipe), lr=0.0, betas=recipe.betas, foreach=True)


def adamw_fused(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build AdamW as one kernel without the temporary."""
    return torch.optim.AdamW(_groups(model, recipe), lr=0.0, betas=recipe.betas, fused=True)


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    # Matrices are 2-d; the tower's patch embedding is a matrix written as a 4-d convolution. Norms, biases,
    # layer scales, the class token and the position embedding (3-d) are not decayed.
    held = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in held if parameter.ndim in (2, 4)]
    others = [parameter for parameter in held if parameter.ndim not in (2, 4)]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
