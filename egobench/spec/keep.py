"""What a trial leaves beside its measurements: a model, checkpoints to resume from, profiles. Never part of a cell."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from egobench.spec.strict import Strict


class Save(Strict):
    """`save:` of a matrix."""

    acceptable_loss_h: float | None = Field(default=None, gt=0)
    """Most training time that an interruption may cost, hours: how often a checkpoint is written. Default: never."""
    export: Literal["none", "merged", "adapters"] = "none"
    """Hugging Face folder left at the end: the whole model, any adapters merged into it, or adapters alone.

    A method without adapters leaves its whole model either way."""


class Profile(Strict):
    """`profile:` of a matrix."""

    steps: tuple[int, ...] = Field(min_length=1, max_length=10, strict=False)
    """Updates that a profiler watches, counted from 0; they are left out of every timing. Few: traces are large."""
    tool: Literal["torch", "nsys", "ncu"] = "torch"
    """torch.profiler (kernel table and trace in the trial's folder), or NVIDIA's tools where they are installed."""
    where: dict[str, tuple[Any, ...]] = Field(default={}, strict=False)
    """Axis -> value or list of values: the cells that are profiled; default: every cell."""
