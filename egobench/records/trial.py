"""What is to be run: `trial.json`, the whole payload of a job."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from egobench.records.outcome import Phase
from egobench.spec.keep import Profile, Save
from egobench.spec.strict import Record
from egobench.spec.variants import Variant
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
    variant: Variant | None = None
    """None: the cell trains the workload's model."""
    lineage: tuple[str, ...] = ()
    """Names of the variants that it is made from, the oldest first, and its own; empty for a cell that trains."""


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
    save: Save = Save()
    profile: Profile | None = None
    """None: not profiled."""
    parent: str | None = None
    """cell_id of the cell whose trial of the same number left the model that a variant is made from."""

    @property
    def seed(self) -> int:
        """Return the seed of this repeat."""
        return self.cell.workload.recipe.seed + self.trial

    @property
    def num_ranks(self) -> int:
        """Return how many ranks the trial has."""
        variant = self.cell.variant
        return 1 if variant is not None and variant.is_alone else int(self.cell.axes["gpus"])

    @property
    def global_batch_size(self) -> int:
        """Return samples per optimizer update; not known beforehand where `micro_batch_size` is `max`."""
        axes = self.cell.axes
        return self.num_ranks * int(axes["micro_batch_size"]) * int(axes["num_accumulation_steps"])
