"""Runs the trials of an allocation one after another, each in clean processes."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType

from egobench.errors import EXIT_INTERRUPTED, EXIT_INVALID_INPUT, EXIT_OK, EgobenchError
from egobench.records.allocation import Allocation, AllocationPaths, CancelRequest, Ended, is_settled
from egobench.records.store import read_document, write_document
from egobench.worker.say import say


class Stop:
    """Why the allocation, or the trial that it runs now, is to end: a signal or somebody's `cancel.json`."""

    def __init__(self, paths: AllocationPaths | None = None) -> None:
        self._paths = paths
        self._signal: str | None = None
        self.cell_id: str | None = None
        """The cell whose trial runs now."""

    def listen(self) -> None:
        """Take SIGTERM, SIGINT and SIGHUP as the wish to end."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signal = f"{signal.Signals(number).name} to the allocation"

    def everything(self) -> str | None:
        """Return why no further trial is to start."""
        request = self._request()
        if request is not None and request.cell_id is None:
            return f"cancelled by {request.by}"
        return self._signal

    def this_trial(self) -> str | None:
        """Return why the trial that runs now is to end."""
        return self.everything() or (self.cell(self.cell_id) if self.cell_id else None)

    def cell(self, cell_id: str) -> str | None:
        """Return why trials of this cell are to be left out."""
        request = self._request()
        return f"cancelled by {request.by}" if request is not None and request.cell_id == cell_id else None

    def _request(self) -> CancelRequest | None:
        return read_document(self._paths.cancel, CancelRequest) if self._paths else None


def run_allocation(folder: Path, body: str) -> int:
    """Run what `allocation.json` lists and is not settled yet; return the exit code.

    Raises:
        EgobenchError: the machine failed; `ended.json` says so too, where it can still be written.
    """
    paths = AllocationPaths(folder)
    stop = Stop(paths)
    stop.listen()
    try:
        code, because = _run_all(paths, stop, body)
    except EgobenchError as error:
        _end(paths, error.exit_code, str(error))
        raise
    _end(paths, code, because)
    return code


def _run_all(paths: AllocationPaths, stop: Stop, body: str) -> tuple[int, str]:
    allocation = read_document(paths.allocation, Allocation)
    if allocation is None:
        return EXIT_INVALID_INPUT, f"{paths.allocation}: no whole allocation document"
    # Imports torch, while the fork server does the same.
    from egobench.worker.agent import quiet_elastic_logging
    from egobench.worker.trial import run_trial, tell
    from egobench.worker.warm import await_server

    quiet_elastic_logging()
    await_server()
    for ref in allocation.trials:
        if (why := stop.everything()) is not None:
            return EXIT_INTERRUPTED, why
        stop.cell_id = ref.cell_id
        if stop.cell(ref.cell_id) is not None or is_settled(paths.sweep, ref):
            continue
        outcome = run_trial(paths.trial(ref).folder, stop.this_trial, paths.number, body)
        tell(outcome)
        if allocation.fail_fast and outcome.outcome != "ok":
            return EXIT_OK, f"fail-fast: {ref.cell_id} trial {ref.trial} ended as {outcome.outcome}"
    return EXIT_OK, ""


def _end(paths: AllocationPaths, code: int, because: str) -> None:
    if because:
        say(because)
    try:
        write_document(paths.ended, Ended(exit_code=code, because=because, at=time.time()))
    except EgobenchError as error:  # the full disk that ended the allocation
        say(error)
