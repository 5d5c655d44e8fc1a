"""What a prediction depends on: one point of a matrix, the shape of its model, its batches, and the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from egobench.hardware import Gpu
from egobench.predict.shapes import ModelShape


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank, as tensors are."""

    num_rows: int
    width: float
    """Positions of the LLM in a row, padding included."""
    num_images: float
    """In all rows."""
    num_supervised: float
    """Positions with a target, in all rows."""
    num_real: float
    """Positions that are no padding, in all rows."""
    num_scores: float
    """Query-key pairs of one head of the LLM: the squares of all rows (or packed segments), summed."""


@dataclass(frozen=True)
class Machine:
    """What a rank runs on, and how it reaches the others."""

    gpu: Gpu
    gpus_per_node: int
    node_bytes_per_s: float | None = None
    """All network cards of a node together, one direction; None: not known, and no time over several nodes."""


@dataclass(frozen=True)
class Setting:
    """One point, ready to be predicted."""

    shape: ModelShape
    axes: Mapping[str, Any]
    """Every axis, after defaults; `micro_batch_size` is a number here."""
    longest: Batch
    """The largest micro-batch of an epoch: what the peak is made of."""
    usual: Batch
    """The mean micro-batch: what the time is made of."""
    machine: Machine
    software: str = "egobench"
    """Whose training loop it is: a key of `constants.SOFTWARE`. Published rows were measured with others."""
