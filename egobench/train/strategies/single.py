"""One rank, nothing spread."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from egobench.errors import InvalidInput, Mistake
from egobench.train.rank import Rank
from egobench.train.stages import Stages
from egobench.train.strategies.strategy import Thing


class SingleStrategy:
    """The model as it is."""

    def __init__(self, rank: Rank, stages: Stages) -> None:
        if rank.num_ranks != 1:
            mistake = Mistake("axes.strategy", f"single with {rank.num_ranks} ranks", "allowed: gpus: 1")
            raise InvalidInput([mistake])

    def prepare(self, model: nn.Module) -> nn.Module:
        return model

    def unwrap(self, model: nn.Module) -> Any:
        return model

    def accumulate(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def clip(self, model: nn.Module, max_norm: float) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    def gather(self, thing: Thing) -> list[Thing]:
        return [thing]

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
