"""Forward and backward of a micro-batch that leave nothing behind: to learn early what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch

from egobench.train.feed import Dealt
from egobench.train.rng import random_state, set_random_state

if TYPE_CHECKING:
    from egobench.train.setup import Assembled, Work

_STATE_BYTES: Final = {"adamw_8bit": 2.0, "adamw_8bit_torchao": 2.0, "adamw_8bit_paged": 0.0}
"""Of two moments in one byte each, per parameter; those of the paged optimizer move to the host when room is short."""
_SCALES: Final = 1 + 4 / 256
"""8-bit moments go with an fp32 scale per 256 of them (bitsandbytes' and torchao's blocks)."""


@contextmanager
def without_trace(work: Work) -> Iterator[None]:
    """Undo what passes over the model inside change, but for gradients: random generators, the phase of the step.

    Weights, optimizer and loss scaler are not touched by a pass without an update.
    """
    random = random_state(work.rank.device)
    work.stages.outside("load")
    with work.stages.rehearsing():
        yield
    # After a failure the rank ends, and its first error is the one to tell.
    set_random_state(random, work.rank.device)
    work.stages.outside("load")


def run(work: Assembled, dealt: Dealt, *, is_last: bool) -> None:
    """Run one micro-step as the loop does; gradients are added to those that are there."""
    work.stages.enter("forward")
    with work.strategy.accumulate(is_last=is_last):
        with work.strategy.precision.compute(work.rank.device):
            loss = work.loss.compute(work.model, dealt.batch, dealt.pixel_values)
        work.stages.enter("backward")
        work.strategy.backward(loss / dealt.global_supervised_tokens)


def settle(work: Assembled, dealt: Dealt) -> None:
    """Have a micro-batch make what stays, where a strategy still takes some passes to make it; all ranks together."""
    for _ in range(work.strategy.num_settling_passes):
        run(work, dealt, is_last=True)
        work.strategy.forget()


def run_micro_steps(work: Assembled, dealt: Dealt, *, alone: bool = False) -> None:
    """Run what of an update takes most memory, before gradients are used; the caller has them forgotten.

    Where several micro-steps make an update, those are the last and one before it: its gradients are there already.

    Args:
        work: What the rank trains with.
        dealt: The micro-batch of each of them.
        alone: Keep gradients to this rank, where the strategy can.
    """
    num_micro_steps = int(work.trial.cell.axes["num_accumulation_steps"])
    for is_last in (True,) if num_micro_steps == 1 else (False, True):
        run(work, dealt, is_last=is_last and not alone)


def reserve_states(work: Work) -> torch.Tensor | None:
    """Hold as much of the GPU as the optimizer's states will take after the first update; None where they exist."""
    device = work.rank.device
    if device.type != "cuda" or len(work.optimizer.state):
        return None
    held = (parameter for group in work.optimizer.param_groups for parameter in group["params"])
    size = sum(state_bytes(parameter, str(work.trial.cell.axes["optimizer"]), device) for parameter in held)
    return torch.empty(size, dtype=torch.uint8, device=device)


def state_bytes(parameter: Any, optimizer: str, device: torch.device) -> int:
    """Return what an optimizer will hold on the device for a parameter of this rank, or for its shard of one."""
    local: torch.Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    if local.device.type != device.type or not parameter.requires_grad:
        return 0
    per_value = _STATE_BYTES.get(optimizer)
    return round(local.numel() * (2 * local.element_size() if per_value is None else per_value * _SCALES))
