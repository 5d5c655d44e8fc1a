"""The launchers: name of a site's launcher -> the fleet that runs its allocations."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from egobench.launch.fleet import Fleet
from egobench.launch.packing import Draft
from egobench.records.allocation import Allocation, AllocationPaths, Retry
from egobench.records.store import SweepPaths, disk_errors, write_document
from egobench.records.sweep import Sweep


@dataclass(frozen=True)
class Orders:
    """What every allocation of one call of `egobench sweep` is told."""

    sweep: Sweep
    paths: SweepPaths
    retry: Retry
    fail_fast: bool = False

    def write(self, draft: Draft, number: int, after: Sequence[int] = (), is_budgeted: bool = False) -> AllocationPaths:
        """Write an allocation, in a folder that nobody may have made before.

        Raises:
            EnvironmentProblem: the disk is full or not writable.
        """
        paths = AllocationPaths(self.paths.allocations / str(number))
        with disk_errors(paths.folder):
            paths.folder.mkdir(parents=True)
        document = Allocation(
            sweep=self.sweep.name,
            trials=draft.trials,
            fail_fast=self.fail_fast,
            retry=self.retry,
            num_nodes=draft.num_nodes,
            gpus_per_node=draft.gpus_per_node,
            time_limit_min=draft.time_limit_min,
            signal_before_end_s=self.sweep.site.signal_before_end_s,
            gpu_hours_at_most=draft.gpu_hours_at_most if is_budgeted else None,
            after=tuple(after),
        )
        write_document(paths.allocation, document)
        return paths


LAUNCHERS: Final[dict[str, str]] = {
    "local": "egobench.launch.local:LocalFleet",
    "slurm": "egobench.launch.slurm:SlurmFleet",
}


def fleet_of(orders: Orders) -> Fleet:
    """Return the fleet of the sweep's site.

    Raises:
        EnvironmentProblem: nothing can run here: no torch, no Slurm.
    """
    module, _, attribute = LAUNCHERS[orders.sweep.site.launcher].partition(":")
    make: Callable[[Orders], Fleet] = getattr(importlib.import_module(module), attribute)
    return make(orders)
