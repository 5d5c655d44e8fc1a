"""Ranks that are not there, and a GPU that is not: what a trace replaces so that the worker's own code runs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from egobench.spec.dims import NAMED
from egobench.train.replaced import replaced
from egobench.train.strategies import ddp, fsdp, zero

CPU: Final = torch.device("cpu")


@contextlib.contextmanager
def ranks(rank: int, num_ranks: int) -> Iterator[None]:
    """Have a process group of many ranks, of which the others do not exist: collectives return at once."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(num_ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # DeepSpeed looks whether they are there
    dist.init_process_group("fake", rank=rank, world_size=num_ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def shallow(name: str, num_blocks: int) -> Iterator[None]:
    """Let a named model have fewer blocks."""
    dims = NAMED[name]
    vision = dataclasses.replace(dims.vision, layers=min(num_blocks, dims.vision.layers))
    text = dataclasses.replace(dims.text, layers=min(num_blocks, dims.text.layers))
    NAMED[name] = dataclasses.replace(dims, vision=vision, text=text)
    try:
        yield
    finally:
        NAMED[name] = dims


@contextlib.contextmanager
def without_peers() -> Iterator[None]:
    """Leave out of the strategies what waits for words from other ranks, or reads the numbers that they sent."""
    meshes = vars(fsdp)["init_device_mesh"]
    os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"  # it reads how many image tokens there are

    def mesh(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():  # a mesh reads its own numbers
            return meshes(*args, **kwargs)

    with (
        replaced(fsdp, "init_device_mesh", mesh),
        replaced(fsdp, "set_model_state_dict", lambda *_, **__: None),
        replaced(ddp, "DistributedDataParallel", LonelyDdp),
        replaced(torch.amp.GradScaler, "_maybe_opt_step", _step),
        replaced(nn.Module, "_apply", _apply),
        replaced(torch.Tensor, "__deepcopy__", _deepcopy),
    ):
        yield


def replace_buffers(model: nn.Module, device: torch.device) -> None:
    """Give every buffer memory on `device`."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=device)


class LonelyDdp(DistributedDataParallel):
    """DDP that neither compares its parameters with other ranks nor agrees with them on new buckets."""

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__(module, init_sync=False, **options)
        self.__dict__["reducer"] = _Reducer(self.reducer)

    def register_comm_hook(self, state: object, hook: Any) -> None:
        # A lambda, because DDP compares annotations with classes.
        super().register_comm_hook(state, lambda strategy, bucket: _sum_at_once(strategy, bucket))


def _sum_at_once(strategy: ddp.DdpStrategy, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Sum a bucket as the strategy does; the future of a collective without ranks holds nothing."""
    strategy.announce(bucket)
    dist.all_reduce(bucket.buffer())
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


class _Reducer:
    """The reducer, whose buckets stay: new ones would be of the same sizes."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _rebuild_buckets(self) -> bool:
        return False


def _apply(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """Change parameters and buffers in place; torch would swap fake ones, and cannot where nothing changes."""
    for child in module.children() if recurse else ():
        _apply(child, change)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            changed = change(parameter)
        if changed.device == parameter.device:
            parameter.data = changed.data
        else:
            module._parameters[name] = nn.Parameter(changed, requires_grad=parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


def _deepcopy(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """Copy a tensor; torch's own copy of a fake one shares its memory with no view of it."""
    if id(tensor) not in memo:
        made = torch.empty_like(tensor.detach())
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(made, requires_grad=tensor.requires_grad) if is_parameter else made
    copied: torch.Tensor = memo[id(tensor)]
    return copied


def _step(scaler: Any, optimizer: torch.optim.Optimizer, state: Any, *args: Any, **kwargs: Any) -> Any:
    """Step as if nothing had overflowed."""
    return optimizer.step(*args, **kwargs)


@contextlib.contextmanager
def lonely_deepspeed(deepspeed: Any, *, on_gpu: bool) -> Iterator[None]:
    """Keep DeepSpeed from asking other ranks whether they have the same numbers; `on_gpu`: set it up as for one."""
    plain = zero.ZeroStrategy.config

    def config(strategy: zero.ZeroStrategy, num_trained: int, hidden_size: int) -> dict[str, Any]:
        made = plain(strategy, num_trained, hidden_size)
        made["zero_optimization"]["overlap_comm"] = on_gpu  # a second buffer for what is being reduced
        return made

    asked = ("assert_ints_same_as_other_ranks", "assert_lst_len_same_as_other_ranks")
    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(zero.ZeroStrategy, "config", config))
        stack.enter_context(replaced(type(deepspeed.get_accelerator()), "is_fp16_supported", lambda _: True))
        for name, module in list(sys.modules.items()):
            if name.startswith("deepspeed.runtime.zero"):
                for one in asked:
                    if hasattr(module, one):
                        stack.enter_context(replaced(module, one, lambda *_, **__: None))
        yield
