"""Allocations on this machine: a process of its own session that outlives the one that started it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence

from egobench.errors import EnvironmentProblem, SweepBusy
from egobench.launch.launchers import Orders
from egobench.launch.packing import ArrayDraft, Draft, Packing
from egobench.records.allocation import AllocationPaths, TrialRef
from egobench.records.lock import take_lock
from egobench.records.store import disk_errors


def pack_locally(refs: Sequence[TrialRef], num_gpus: int) -> Packing:
    """Put everything into one allocation: a machine measures one trial at a time."""
    draft = Draft(tuple(refs), num_nodes=1, gpus_per_node=num_gpus, time_limit_min=None)
    return Packing((ArrayDraft((draft,), parallel=1),))


class LocalFleet:
    """One allocation at a time."""

    options: tuple[str, ...] = ()
    """Further options of the worker."""

    def __init__(self, orders: Orders) -> None:
        """Prepare to start allocations.

        Raises:
            EnvironmentProblem: the worker's packages are not installed.
        """
        if importlib.util.find_spec("torch") is None:
            raise EnvironmentProblem(
                "torch is not installed here; a local site trains in this Python: pip install 'egobench[worker]'"
            )
        self._orders = orders

    def recover(self) -> set[int]:
        return set()  # a process holds its allocation's lock from its first moment on

    def start(self, packing: Packing, first: int) -> list[AllocationPaths]:
        drafts = [draft for array in packing.arrays for draft in array.drafts]
        return [self._start(draft, first + index) for index, draft in enumerate(drafts)]

    def _start(self, draft: Draft, number: int) -> AllocationPaths:
        paths = self._orders.write(draft, number)
        lock = take_lock(paths.lock, wait_s=1.0)
        if lock is None:
            raise SweepBusy(f"{paths.folder}: somebody else took this new allocation")
        # The worker inherits the lock, so that there is no moment at which nobody holds it.
        command = [sys.executable, "-m", "egobench.worker", str(paths.allocation)]
        try:
            with disk_errors(paths.log), paths.log.open("ab") as log:
                process = subprocess.Popen(
                    [*command, "--lock-descriptor", str(lock.descriptor), *self.options],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(lock.descriptor,),
                    start_new_session=True,
                )
            lock.name_holder(process.pid)
        finally:
            lock.close()
        return paths
