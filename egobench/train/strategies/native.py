"""What the strategies of PyTorch itself have in common: one optimizer, one loss scaler, one way to checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from egobench.records.trial import Trial
from egobench.train.optimizers import page_again
from egobench.train.precision import Precision
from egobench.train.rank import Rank
from egobench.train.stages import Stages
from egobench.train.strategies.strategy import BuildOptimizer, Thing


class NativeStrategy:
    """Base of single, ddp and fsdp; a subclass says how the model is wrapped."""

    answers_in_lockstep = False
    num_settling_passes = 0

    def __init__(self, trial: Trial, rank: Rank, stages: Stages, precision: Precision) -> None:
        self.trial, self.rank, self.stages, self.precision = trial, rank, stages, precision
        self.scaler = torch.amp.GradScaler(rank.device.type, enabled=precision.scales_loss)
        self.model: nn.Module
        self.optimizer: torch.optim.Optimizer

    def builds_on(self) -> torch.device:
        return self.rank.device

    def prepare(self, model: nn.Module, build: BuildOptimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        self.model = self.wrap(model)
        self.optimizer = build(self.model)
        return self.model, self.optimizer

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model that is trained."""
        return model

    def unwrap(self, model: nn.Module) -> Any:
        return model

    def accumulate(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        torch.autograd.backward(self.scaler.scale(loss))

    def update(self, max_norm: float) -> torch.Tensor:
        self.scaler.unscale_(self.optimizer)
        norm = self.clip(max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.forget()
        return norm

    def forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def clip(self, max_norm: float) -> torch.Tensor:
        """Scale the gradients down to a global norm; return the norm before."""
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)

    def gather(self, thing: Thing) -> list[Thing]:
        return gather_things(self.rank, thing)

    def save(self, folder: Path) -> None:
        # No update has succeeded yet (fp16 skips the first ones): torch would make states, by a step of its own.
        has_states = bool(self.optimizer.state)
        dcp.save(self._state(has_states), checkpoint_id=folder, no_dist=self.rank.num_ranks == 1)

    def load(self, folder: Path) -> None:
        has_states = any(name.startswith("optimizer.") for name in _names(folder))
        state = self._state(has_states)
        dcp.load(state, checkpoint_id=folder, no_dist=self.rank.num_ranks == 1)
        if has_states:
            set_state_dict(
                self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
            )
            page_again(self.optimizer)
        else:
            set_model_state_dict(self.model, state["model"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])

    def _state(self, with_optimizer: bool) -> dict[str, Any]:
        if not with_optimizer:
            return {"model": get_model_state_dict(self.model), "scaler": self.scaler.state_dict()}
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "scaler": self.scaler.state_dict()}

    def weights(self) -> dict[str, torch.Tensor]:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = get_model_state_dict(self.model, options=options)
        return state if self.rank.is_first else {}


def _names(folder: Path) -> Iterator[str]:
    return iter(dcp.FileSystemReader(folder).read_metadata().state_dict_metadata)


def gather_things(rank: Rank, thing: Thing) -> list[Thing]:
    """Return one (picklable) thing of every rank, in order, on every rank."""
    if rank.num_ranks == 1:
        return [thing]
    things: list[Any] = [None] * rank.num_ranks
    dist.all_gather_object(things, thing)
    return things
