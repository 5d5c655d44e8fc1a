"""DistributedDataParallel: every rank holds the model, gradients are summed in buckets during the backward pass."""

# No `from __future__ import annotations`: DDP compares the annotations of a communication hook with classes.

import contextlib
import inspect
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from egobench.records.trial import Trial
from egobench.train.precision import Precision
from egobench.train.rank import Rank
from egobench.train.stages import Stages
from egobench.train.strategies.native import NativeStrategy

# No buffer changes during training, so none need be sent around; torch 2.13 renamed the switch.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}

_SETTLING_PASSES: Final = 2
"""DDP makes its buckets anew after the first reduction."""


class DdpStrategy(NativeStrategy):
    """Replicas; the loss is normalised over all ranks beforehand, so gradients are summed, not averaged.

    Gradients are views of DDP's buckets once they have been reduced. Where micro-steps add up they stay so, and are set
    to zero: those that are not reduced would make a second set of gradients beside the buckets.
    """

    def __init__(self, trial: Trial, rank: Rank, stages: Stages, precision: Precision) -> None:
        super().__init__(trial, rank, stages, precision)
        self._adds_up = int(trial.cell.axes["num_accumulation_steps"]) > 1
        self.num_settling_passes = _SETTLING_PASSES * self._adds_up

    def wrap(self, model: nn.Module) -> nn.Module:
        wrapped = DistributedDataParallel(
            model,
            device_ids=[self.rank.device] if self.rank.device.type == "cuda" else None,
            gradient_as_bucket_view=True,  # else the buckets are a second copy of all gradients
            **_KEEP_BUFFERS,
        )
        wrapped.register_comm_hook(self, _sum_bucket)
        return wrapped

    def unwrap(self, model: nn.Module) -> Any:
        return model.module if isinstance(model, DistributedDataParallel) else model

    def accumulate(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        assert isinstance(self.model, DistributedDataParallel)
        self.num_settling_passes = max(0, self.num_settling_passes - is_last)
        return contextlib.nullcontext() if is_last else self.model.no_sync()

    def forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=not self._adds_up or self.num_settling_passes > 0)

    def load(self, folder: Path) -> None:
        self.optimizer.zero_grad(set_to_none=True)  # torch takes gradients for a sign that there are states
        self.num_settling_passes = _SETTLING_PASSES * self._adds_up
        super().load(folder)

    def announce(self, bucket: dist.GradBucket) -> None:
        """Note when the last gradients are ready: from here on the step only waits for the network."""
        if bucket.is_last():
            self.stages.enter("communication")


def _sum_bucket(strategy: DdpStrategy, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Sum one bucket over the ranks, as `default_hooks.allreduce_hook` does without its division."""
    strategy.announce(bucket)
    summed: torch.futures.Future[torch.Tensor] = (
        dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(_first)
    )
    return summed


def _first(future: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
    return future.value()[0]
