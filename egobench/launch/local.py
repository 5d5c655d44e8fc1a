"""Allocations on this machine: a process of its own session that outlives the one that started it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass

from egobench.errors import EnvironmentProblem
from egobench.records.allocation import AllocationPaths
from egobench.records.lock import Lock
from egobench.records.store import disk_errors
from egobench.spec.site import Site


@dataclass(frozen=True)
class LocalAllocation:
    """The process that runs the allocation."""

    process: subprocess.Popen[bytes]

    def exit_code(self) -> int | None:
        return self.process.poll()


def start(paths: AllocationPaths, lock: Lock, site: Site, options: tuple[str, ...] = ()) -> LocalAllocation:
    """Start the worker detached; it inherits the lock, so that there is no moment at which nobody holds it.

    Raises:
        EnvironmentProblem: the worker's packages are not installed, or its log cannot be written.
    """
    if importlib.util.find_spec("torch") is None:
        raise EnvironmentProblem(
            "torch is not installed here; a local site trains in this Python: pip install 'egobench[worker]'"
        )
    command = [sys.executable, "-m", "egobench.worker", str(paths.allocation)]
    with disk_errors(paths.log), paths.log.open("ab") as log:
        process = subprocess.Popen(
            [*command, "--lock-descriptor", str(lock.descriptor), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock.descriptor,),
            start_new_session=True,
        )
    lock.name_holder(process.pid)
    return LocalAllocation(process)
