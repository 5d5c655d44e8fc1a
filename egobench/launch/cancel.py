"""`egobench cancel`: ask the allocation through a file; end it by signal only if it does not listen."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Final

from egobench.launch.state import living_allocation
from egobench.records.allocation import AllocationPaths, CancelRequest, Ended
from egobench.records.lock import is_held, read_holder
from egobench.records.outcome import Outcome
from egobench.records.store import SweepPaths, read_document, write_document

PATIENCE_S: Final = 15.0
KILL_PATIENCE_S: Final = 5.0


def cancel_sweep(paths: SweepPaths, cell_id: str | None = None) -> str:
    """End what runs now, and return what happened; everything not begun stays pending."""
    allocation = living_allocation(paths)
    if allocation is None:
        return "nothing runs"
    by = f"pid {os.getpid()} on {socket.gethostname()}"
    write_document(allocation.cancel, CancelRequest(cell_id=cell_id, by=by, at=time.time()))
    if cell_id is not None:
        return _await_cell(paths, allocation, cell_id)
    if _await_end(allocation, PATIENCE_S):
        return f"allocation {allocation.number} ended"
    return _kill(allocation)


def _await_end(allocation: AllocationPaths, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while is_held(allocation.lock):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _await_cell(paths: SweepPaths, allocation: AllocationPaths, cell_id: str) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and is_held(allocation.lock):
        running = [entry.parent for entry in (paths.folder / cell_id).glob("*/running.json")]
        if not [folder for folder in running if read_document(folder / "outcome.json", Outcome) is None]:
            return f"no trial of {cell_id} runs now, and allocation {allocation.number} starts none"
        time.sleep(0.1)
    return f"asked allocation {allocation.number} to leave out {cell_id}"


def _kill(allocation: AllocationPaths) -> str:
    holder = read_holder(allocation.lock)
    if holder is None or holder.host != socket.gethostname():
        where = f"pid {holder.pid} on {holder.host}" if holder else "an unknown process"
        return f"allocation {allocation.number} ({where}) does not answer; its request stays in {allocation.cancel}"
    os.kill(holder.pid, signal.SIGKILL)  # its ranks die with it
    _await_end(allocation, KILL_PATIENCE_S)
    if read_document(allocation.ended, Ended) is None:
        ended = Ended(exit_code=-signal.SIGKILL, because="cancelled; it did not answer and was killed", at=time.time())
        write_document(allocation.ended, ended)
    return f"allocation {allocation.number} did not answer and was killed; its running trial will be run again"
