"""The launchers: name of a site's launcher -> function that starts an allocation."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Final, Protocol

from egobench.errors import EnvironmentProblem
from egobench.records.allocation import AllocationPaths
from egobench.records.lock import Lock
from egobench.spec.site import Site


class Started(Protocol):
    """An allocation that this process started."""

    def exit_code(self) -> int | None:
        """Return the exit code once it has ended."""


Launcher = Callable[[AllocationPaths, Lock, Site], Started]
"""Starts what `allocation.json` says; the lock passes to whoever runs it."""

LAUNCHERS: Final[dict[str, str | None]] = {
    "local": "egobench.launch.local:start",
    "slurm": None,
}


def launcher_of(site: Site, name: str) -> Launcher:
    """Return the launcher of a site.

    Raises:
        EnvironmentProblem: there is none yet.
    """
    target = LAUNCHERS[site.launcher]
    if target is None:
        raise EnvironmentProblem(
            f"site {name}: launcher: {site.launcher}; Slurm submission comes with `egobench sweep` in a later version; "
            "plan it with `egobench plan`, or use a site with launcher: local"
        )
    module, _, attribute = target.partition(":")
    launcher: Launcher = getattr(importlib.import_module(module), attribute)
    return launcher
