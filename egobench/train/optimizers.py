"""Optimizers; each takes the model and the recipe, and updates what requires a gradient.

All are AdamW with decoupled weight decay on matrices and epsilon 1e-8; they differ in how a step is run and in how its
two moments are kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from egobench.errors import EnvironmentProblem
from egobench.spec.workload import Recipe


def adamw(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build AdamW in its foreach form: few kernels, and a temporary the size of the parameters."""
    return torch.optim.AdamW(_groups(model, recipe), lr=0.0, betas=recipe.betas, foreach=True)


def adamw_fused(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build AdamW as one kernel without the temporary."""
    return torch.optim.AdamW(_groups(model, recipe), lr=0.0, betas=recipe.betas, fused=True)


def adamw_8bit(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build bitsandbytes' AdamW8bit: moments in 8 bits, in blocks of 256 with a scale each.

    Moments of fewer than 4096 numbers keep 32 bits, as do those of embeddings, whose gradients are of uneven size:
    bitsandbytes advises it, and transformers' Trainer does it (https://arxiv.org/abs/2110.02861). A ZeRO engine cuts
    all parameters into one vector, in which no embedding can be told apart.
    """
    return _bitsandbytes("AdamW8bit", model, recipe)


def adamw_8bit_paged(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build bitsandbytes' PagedAdamW8bit, whose moments give way to the host where a GPU is full.

    Source: https://arxiv.org/abs/2305.14314. On a CPU it does not page.
    """
    return _bitsandbytes("PagedAdamW8bit", model, recipe)


def adamw_8bit_torchao(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build torchao's AdamW8bit: the same blocks, as tensors that FSDP2 can spread and save.

    Moments keep the parameter's format where their number is below 4096 or no multiple of 256. A second moment far
    below the largest of its block becomes zero, and the next step there many times too long: rarer than one in 10,000,
    but losses stray further from AdamW's than with bitsandbytes, whose rounding never reaches zero. Its step is
    compiled, once for every shape of a parameter, in the first step; on a CPU (170 s for egotiny) it runs uncompiled.

    Raises:
        EnvironmentProblem: torchao is not installed.
    """
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise _missing("torchao") from error
    optimizer: torch.optim.Optimizer = AdamW8bit(_groups(model, recipe), lr=0.0, betas=recipe.betas)
    optimizer.step = _compiled_on_gpu(optimizer)  # type: ignore[method-assign]
    return optimizer


def _compiled_on_gpu(optimizer: torch.optim.Optimizer) -> Any:
    step: Callable[..., Any] = optimizer.step

    @functools.wraps(step)
    def stepped(*args: Any, **kwargs: Any) -> Any:
        # Only now: a strategy moves parameters after the optimizer is built. ZeRO-3 steps one group at a time.
        devices = {parameter.device.type for group in optimizer.param_groups for parameter in group["params"]}
        with torch.compiler.set_stance("default" if "cuda" in devices else "force_eager"):
            return step(*args, **kwargs)

    return stepped


def _bitsandbytes(name: str, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    try:
        from bitsandbytes import optim
    except ImportError as error:
        raise _missing("bitsandbytes") from error
    build: Any = getattr(optim, name)
    optimizer: torch.optim.Optimizer = build(_groups(model, recipe), lr=0.0, betas=recipe.betas)
    # Its manager is one for the process, and remembers the places of parameters of models that are long gone.
    manager: Any = optim.GlobalOptimManager.__new__(optim.GlobalOptimManager)
    manager.initialize()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    optimizer.mng = manager  # type: ignore[attr-defined]
    return optimizer


def page_again(optimizer: torch.optim.Optimizer) -> None:
    """Bring states that were read back to where a paged optimizer keeps them: bitsandbytes puts them on the GPU."""
    own: Any = optimizer
    if not getattr(own, "is_paged", False):
        return
    for parameter, state in own.state.items():
        for name in ("state1", "state2"):
            if parameter.is_cuda and name in state and not getattr(state[name], "is_paged", False):
                state[name] = own.get_state_buffer(parameter, dtype=state[name].dtype).copy_(state[name])


def _missing(package: str) -> EnvironmentProblem:
    return EnvironmentProblem(f"an 8-bit optimizer needs {package}: pip install 'egobench[{package}]'")


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    # Matrices are 2-d; the tower's patch embedding is a matrix written as a 4-d convolution. Norms, biases,
    # layer scales, the class token and the position embedding (3-d) are not decayed.
    held = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in held if parameter.ndim in (2, 4)]
    others = [parameter for parameter in held if parameter.ndim not in (2, 4)]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of every group; torchao holds it as a tensor, for its compiled step to read."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate
