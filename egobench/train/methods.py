"""Which parameters are trained; a method marks them in place and returns the model.

What is frozen below the first trained parameter runs without a graph: autograd records nothing where neither weights
nor inputs require gradients, so no activation is kept and a checkpointed block has nothing to recompute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from torch import nn

from egobench.models.parts import llm, llm_blocks, projector, tower
from egobench.train.losses import OWN

SHARE: Final = 0.1
"""Of the model's parameters, what `last_blocks` aims at."""


def full(model: nn.Module, axes: Mapping[str, Any]) -> nn.Module:
    """Train every parameter: tower, projector and LLM."""
    return model.requires_grad_(True)


def freeze(model: nn.Module, axes: Mapping[str, Any]) -> nn.Module:
    """Train the LLM with its embeddings and head, and the projector where the axis says so; freeze the tower."""
    model.requires_grad_(True)
    tower(model).requires_grad_(False)
    projector(model).requires_grad_(trains_projector(axes))
    return model


def last_blocks(model: nn.Module, axes: Mapping[str, Any]) -> nn.Module:
    """Train the last blocks of the LLM and its final norm, about a tenth of all parameters.

    The projector comes on top where the axis says so, and is dear: gradients then go through every block on their
    way down, while with a frozen one everything below the first trained block runs without a graph.
    """
    model.requires_grad_(False)
    blocks, norm = llm_blocks(model), llm(model).get_submodule("norm")
    number = _closest(blocks, norm, SHARE * count_parameters(model)[0])
    for part in (*blocks[-number:], norm):
        part.requires_grad_(True)
    projector(model).requires_grad_(trains_projector(axes))
    return model


def _closest(blocks: list[nn.Module], norm: nn.Module, aim: float) -> int:
    """Return how many of the last blocks, one at least, come closest to a number of parameters."""
    sizes = [_size(block.parameters()) for block in reversed(blocks)]
    own = _size(norm.parameters())
    return min(range(1, len(blocks) + 1), key=lambda number: abs(own + sum(sizes[:number]) - aim))


def trains_projector(axes: Mapping[str, Any]) -> bool:
    """Tell whether a method that freezes much trains the projector."""
    return bool(axes["projector"] == "trained")


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return (all, trainable) parameters; a tied one counts once, a 4-bit one as one, what is no part of it not at all.

    PEFT keeps the original of a module that it trains whole (the projector) next to the trained one.
    """
    apart = {"original_module", OWN}
    held = [parameter for name, parameter in model.named_parameters() if apart.isdisjoint(name.split("."))]
    return _size(held), _size(parameter for parameter in held if parameter.requires_grad)


def _size(parameters: Iterable[nn.Parameter]) -> int:
    """Count numbers, not elements of storage: bitsandbytes packs two or more into one."""
    states = ((parameter, getattr(parameter, "quant_state", None)) for parameter in parameters)
    return sum(parameter.numel() if state is None else math.prod(state.shape) for parameter, state in states)
