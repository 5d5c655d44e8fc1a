"""The launchers: name of a site's launcher -> the fleet that runs its allocations."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from egobench.launch.fleet import Fleet
from egobench.records.allocation import Retry
from egobench.records.store import SweepPaths
from egobench.records.sweep import Sweep


@dataclass(frozen=True)
class Orders:
    """What every allocation of one call of `egobench sweep` is told."""

    sweep: Sweep
    paths: SweepPaths
    retry: Retry
    fail_fast: bool = False


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
