"""What is to be run: `trial.json`, the whole payload of a job."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from egobench.records.outcome import Phase
from egobench.spec.strict import Record
from egobench.spec.workload import Workload


class Drill(Record):
    """A rehearsed failure: this rank misbehaves at this step and phase. Part of the cell's identity."""

    kind: Literal["oom", "host_oom", "nan", "hang", "sigkill", "raise", "slow"]
    rank: int = 0
    step: int = 0
    phase: Phase = "forward"


class Cell(Record):
    """One point of the matrix, fully resolved."""

    cell_id: str
    """Readable slug + hash of everything that is measured; not of where it runs."""
    axes: dict[str, Any]
    """Every axis of `egobench/spec/axes.py` -> value."""
    workload: Workload
    drill: Drill | None = None


class Placement(Record):
    """Where and under which limits the trial runs; no part of the cell's identity."""

    site: str
    device: Literal["cpu", "cuda"]
    threads_per_rank: int | None = None
    binding: Literal["none", "spread"] = "none"
    num_nodes: int = 1
    """Nodes that the ranks are spread over evenly."""
    trial_time_limit_s: float = 3600
    quiet_limit_s: float = 20
    stall_limit_s: float = 1800
    base_folder: str
    """Folder that the workload's relative paths start from (absolute)."""
    cache_folder: str
    """Generated data sets are kept here (absolute)."""


class Trial(Record):
    """`trial.json`: one repeat of one cell."""

    schema_version: Literal[1] = 1
    sweep: str
    cell: Cell
    trial: int = Field(ge=0)
    """0, 1, ...: which repeat; the seed is the recipe's seed plus this."""
    placement: Placement

    @property
    def seed(self) -> int:
        """Return the seed of this repeat."""
        return self.cell.workload.recipe.seed + self.trial

    @property
    def num_ranks(self) -> int:
        """Return how many ranks the trial has."""
        return int(self.cell.axes["gpus"])

    @property
    def global_batch_size(self) -> int:
        """Return samples per optimizer update."""
        axes = self.cell.axes
        return int(axes["gpus"]) * int(axes["micro_batch_size"]) * int(axes["num_accumulation_steps"])
