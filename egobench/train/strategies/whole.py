"""Build a model once and spread it: the first rank holds the weights in host memory, the others only shapes (meta)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn

from egobench.records.trial import Trial
from egobench.train.rank import Rank

CPU: Final = torch.device("cpu")
META: Final = torch.device("meta")


def is_built_once(trial: Trial) -> bool:
    """Return whether the first rank alone has weights, in host memory, and sends them to the others.

    Not where 4-bit weights are to be made: bitsandbytes reads real ones, on the device that they are for, and keeps
    what it needs to read them again outside of the parameters. And not for one rank that takes the whole model.
    """
    axes = trial.cell.axes
    return axes["method"] != "qlora" and (trial.num_ranks > 1 or axes["offload"] != "none")


def builds_on(trial: Trial, rank: Rank) -> torch.device:
    """Return where this rank builds its model: no GPU ever holds all of a model that is built once."""
    if not is_built_once(trial):
        return rank.device
    return CPU if rank.is_first else META


def replace_parameters(model: nn.Module, device: torch.device) -> None:
    """Give every parameter uninitialised memory on `device`.

    Not `Module.to_empty`, which makes two parameters of a tied one.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module, name, parameter in _parameters(model):
        if parameter not in made:
            empty = torch.empty_like(parameter, device=device)
            made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        module._parameters[name] = made[parameter]


def share_buffers(model: nn.Module, device: torch.device) -> None:
    """Bring all buffers to `device` and send those of the first rank to the others. A collective.

    No state dict holds what is not persistent (rotary frequencies), and on meta it has no values.
    """
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                here = torch.empty_like(buffer, device=device) if buffer.is_meta else buffer.to(device)
                dist.broadcast(here, src=0)
                module._buffers[name] = here


def after_last_gradient(loss: torch.Tensor, announce: Callable[[], None]) -> None:
    """Have `announce` called when the backward pass of `loss` has computed its last gradient.

    Autograd's engine runs callbacks in the order in which they were queued: this one before those in which FSDP and
    DeepSpeed wait for reductions, since nothing of the backward pass runs before the hook of the loss.
    """
    engine: Any = torch.autograd.Variable._execution_engine

    def queue(_: torch.Tensor) -> None:
        engine.queue_callback(announce)

    loss.register_hook(queue)  # type: ignore[no-untyped-call]


def plain_name(name: str) -> str:
    """Return the name of a parameter in the model that transformers or PEFT made, whatever wraps its modules."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                yield module, name, parameter
