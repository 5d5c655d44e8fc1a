"""What torch.compile sees: a forward method, compiled in place, so that names in a state dict stay what they are.

Hooks (FSDP2's, ZeRO's) lie around a forward method and stay out of the graph; recomputation lies inside and is
compiled with it. Blocks of one kind share their graphs. Sizes that never change (padding `max`, the tower) get kernels
made for them; where they do (widths, supervised positions), torch is told so before it sees the first one, and makes
one graph for all. Left to itself it would make one of the first size and then another of any: twice the time, and in
the middle of the steps.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

import torch
from torch import nn

from egobench.models.parts import core, head, llm_blocks, tower, tower_blocks
from egobench.train.losses import LossHead

BACKEND: Final = "inductor"
MAX_GRAPHS: Final = 64
"""Of one method: a tower's and an LLM's blocks, frozen, trained and recomputed ones, with fixed and with any width.

Torch gives up at 8, and goes on uncompiled without a word in any record.
"""


Axes = Mapping[str, Any]


def off(model: nn.Module, axes: Axes) -> nn.Module:
    """Compile nothing."""
    return model


def blocks(model: nn.Module, axes: Axes) -> nn.Module:
    """Compile every block of the tower and of the LLM, by itself."""
    _remove_breaks(model)
    for block in tower_blocks(model):
        _compile(block)
    for block in llm_blocks(model):
        _compile(block, axes)
    return model


def whole(model: nn.Module, axes: Axes) -> nn.Module:
    """Compile tower, projector and LLM as one graph; a loss that is made in the head stays out of it.

    One graph has one backward pass: DDP learns of no gradient, and so hides no communication, before it has ended.
    """
    _remove_breaks(model)
    last = head(model)
    if isinstance(last, LossHead):
        # The number of supervised tokens differs from batch to batch, and would be another graph each time.
        cast("Any", last).forward = cast("Any", torch.compiler).disable(last.forward)
    _compile(core(model), axes)
    return model


def load_compiler(compiled: str) -> None:
    """Import what a value of the axis needs, so that on a CPU libraries do not count as memory of the trial."""
    if compiled != "off":
        importlib.import_module("torch._inductor.compile_fx")


def uncompiled(compiled: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which questions are asked, given the value of the axis: nothing is compiled for them.

    A cache that grows by a token at a time, and widths that come once, would cost more compilation than they save.
    """
    return contextlib.nullcontext() if compiled == "off" else torch.compiler.set_stance("force_eager")


def _compile(module: nn.Module, axes: Axes | None = None) -> None:
    """Compile a module's forward method; `axes`: it is of the LLM, whose inputs have other sizes in every batch."""
    compiled = torch.compile(module.forward, backend=BACKEND)
    cast("Any", module).forward = compiled if axes is None else _of_any_size(compiled, axes["padding"] != "max")


def _of_any_size(compiled: Callable[..., Any], has_widths: bool) -> Callable[..., Any]:
    """Mark in what a compiled method is given the dimensions that differ from batch to batch."""

    @functools.wraps(compiled)
    def forward(*args: Any, **kwargs: Any) -> Any:
        for name, dimension in (("grid", 1), ("supervised", 0)):
            if (tensor := kwargs.get(name)) is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, dimension)
        if has_widths:
            # The model is called with token ids, a block with hidden states: both have the width second.
            width = (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).shape[1]
            given = {name: value for name, value in kwargs.items() if name != "pixel_values"}
            for tensor in _tensors((args, tuple(given.values()))):
                for dimension, size in enumerate(tensor.shape):
                    if size == width:
                        torch._dynamo.maybe_mark_dynamic(tensor, dimension)
        return compiled(*args, **kwargs)

    return forward


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _remove_breaks(model: nn.Module) -> None:
    """Take away what transformers would have traced and cannot."""
    # The tower is asked for its hidden states, of which only the last is used, which it returns anyhow: spare it the
    # hooks that collect them.
    if core(model).config.vision_feature_layer == -1:
        cast("Any", tower(model))._output_capturing_hooks_installed = True
    # Whether images and their tokens are equally many is known from the data; to check it waits for the device.
    os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
