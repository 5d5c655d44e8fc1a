"""What a strategy must do: spread a model over the ranks, and hide how from the loop."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from egobench.train.rank import Rank
from egobench.train.stages import Stages

Thing = TypeVar("Thing")


class Strategy(Protocol):
    """One value of the strategy axis; made as `Strategy(rank, stages)`."""

    def __init__(self, rank: Rank, stages: Stages) -> None: ...

    def prepare(self, model: nn.Module) -> nn.Module:
        """Wrap the model for training; called last, before the optimizer is built."""

    def unwrap(self, model: nn.Module) -> Any:
        """Return the model that generates answers."""

    def accumulate(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return the context of one micro-step; gradients are summed over the ranks in the last one."""

    def clip(self, model: nn.Module, max_norm: float) -> torch.Tensor:
        """Scale the gradients down to a global norm; return the norm before, on the device."""

    def gather(self, thing: Thing) -> list[Thing]:
        """Return one (picklable) thing of every rank, in order, on every rank."""

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return what a checkpoint of this rank must hold."""
