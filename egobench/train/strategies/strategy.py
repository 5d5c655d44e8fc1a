"""What a strategy must do: spread a model over the ranks, step its optimizer, and hide how from the loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from egobench.records.trial import Trial
from egobench.train.precision import Precision
from egobench.train.rank import Rank
from egobench.train.stages import Stages

Thing = TypeVar("Thing")
BuildOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


class Strategy(Protocol):
    """One value of the strategy axis; made as `Strategy(trial, rank, stages, precision)`."""

    precision: Precision
    """What forward passes run in: a strategy that casts by itself needs no autocast around it."""
    answers_in_lockstep: bool
    """Generation is a collective: every rank must make the same number of forward passes."""
    num_settling_passes: int
    """Forward and backward passes that it still takes until its buffers are those that stay."""

    def __init__(self, trial: Trial, rank: Rank, stages: Stages, precision: Precision) -> None: ...

    def builds_on(self) -> torch.device:
        """Return where the model is built before it is prepared; `meta`: nowhere, another rank sends the weights."""

    def prepare(self, model: nn.Module, build: BuildOptimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Take hold of the model for training and build its optimizer; called last."""

    def unwrap(self, model: nn.Module) -> Any:
        """Return the model that generates answers."""

    def accumulate(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return the context of one micro-step; gradients are summed over the ranks in the last one."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of one micro-step's loss, whose sum over ranks and micro-steps is the update's loss."""

    def update(self, max_norm: float) -> torch.Tensor:
        """Clip to a global norm, step, forget the gradients; return the norm before, on the device.

        A norm that is not finite means that a loss scaler skipped the step, where there is one.
        """

    def forget(self) -> None:
        """Throw away the gradients of the micro-steps since the last update."""

    def gather(self, thing: Thing) -> list[Thing]:
        """Return one (picklable) thing of every rank, in order, on every rank."""

    def save(self, folder: Path) -> None:
        """Write this rank's part of model, optimizer and loss scaler; every rank calls it with the same folder."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, for the same number of ranks or another."""

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the whole model's state dict, on the CPU, on the first rank; nothing on the others. A collective."""
