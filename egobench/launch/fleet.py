"""What runs allocations, as the driver sees it: this machine (`local.py`) or Slurm (`slurm.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from egobench.launch.packing import Packing
from egobench.records.allocation import AllocationPaths
from egobench.records.queue import Activity, JobState


@dataclass(frozen=True)
class AllocationState:
    """One allocation right now."""

    paths: AllocationPaths
    activity: Activity
    job: JobState | None = None
    """What Slurm says; None: a local allocation, or Slurm was not asked yet."""


class Fleet(Protocol):
    """Starts allocations. How they fare is read from their files and from Slurm's queue."""

    def recover(self) -> set[int]:
        """Find what a command set going without living to write it down; return the allocations still in doubt."""

    def start(self, packing: Packing, first: int) -> list[AllocationPaths]:
        """Write the allocations of a packing, numbered from `first`, and set them going."""
