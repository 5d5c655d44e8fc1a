"""DistributedDataParallel: every rank holds the model, gradients are summed in buckets during the backward pass."""

# No `from __future__ import annotations`: DDP compares the annotations of a communication hook with classes.

import contextlib
import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from egobench.train.strategies.native import NativeStrategy

# No buffer changes during training, so none need be sent around; torch 2.13 renamed the switch.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


class DdpStrategy(NativeStrategy):
    """Replicas; the loss is normalised over all ranks beforehand, so gradients are summed, not averaged."""

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
        return contextlib.nullcontext() if is_last else self.model.no_sync()

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
