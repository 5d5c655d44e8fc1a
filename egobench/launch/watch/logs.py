"""`egobench logs`: the streams of a trial's ranks, on all nodes, as one, each line with its rank."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from egobench.launch.watch.reader import SweepReader
from egobench.launch.watch.state import TrialState
from egobench.records.allocation import AllocationPaths, Job
from egobench.records.outcome import UNFINISHED
from egobench.records.store import TrialPaths, read_document

LOOK_EVERY_S: Final = 0.5
STATE_EVERY_S: Final = 2.0
"""Between two looks at where the trial stands, while its log says nothing."""


@dataclass
class _Open:
    """A log file that is being read; it stays open, so that its end is read even once it was moved aside."""

    stream: BinaryIO
    inode: int
    rest: bytes = b""
    """The beginning of a line whose end is not written yet."""


class LogReader:
    """Reads whole new lines of all log files of a trial, through all its attempts."""

    def __init__(self, paths: TrialPaths) -> None:
        self._paths = paths
        self._open: dict[Path, _Open] = {}

    def new_lines(self, is_last: bool = False) -> Iterator[str]:
        """Yield lines written since the last call; `is_last` also takes a last line without its end."""
        for path in self._moved():
            yield from self._read(path, is_last=True)
            self._open.pop(path).stream.close()
        for path in self._files():
            if path not in self._open:
                try:
                    stream = path.open("rb")
                except FileNotFoundError:
                    continue  # moved aside this instant
                self._open[path] = _Open(stream, os.fstat(stream.fileno()).st_ino)
            yield from self._read(path, is_last)

    def close(self) -> None:
        """Close all files."""
        for found in self._open.values():
            found.stream.close()
        self._open.clear()

    def _moved(self) -> list[Path]:
        return [path for path, found in self._open.items() if _inode(path) != found.inode]

    def _read(self, path: Path, is_last: bool) -> Iterator[str]:
        found = self._open[path]
        data = found.rest + found.stream.read()
        end = len(data) if is_last else data.rfind(b"\n") + 1
        found.rest = data[end:]
        rank, stream_name = path.name.split(".")
        mark = "" if stream_name == "out" else "!"
        for line in data[:end].decode(errors="replace").splitlines():
            yield f"[{rank}{mark}] {line}"

    def _files(self) -> list[Path]:
        streams = (".out", ".err")
        found = [path for path in self._paths.log.glob("*.*") if path.stem.isdigit() and path.suffix in streams]
        return sorted(found, key=lambda path: (int(path.stem), path.suffix != ".out"))


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def follow_trial(
    reader: SweepReader,
    cell_id: str,
    trial: int,
    look_every_s: float = LOOK_EVERY_S,
    state_every_s: float = STATE_EVERY_S,
) -> Iterator[tuple[bool, str]]:
    """Yield lines from now, pending or running, to the trial's final outcome, through every attempt.

    Ends too where the trial waits in nothing that lives. Each item: whether it is the log's own line (else it is talk
    about the trial), and the text.
    """
    paths = reader.paths.trial(cell_id, trial)
    log = LogReader(paths)
    said, next_look_s = "", 0.0
    try:
        while True:
            lines = list(log.new_lines())
            yield from ((True, line) for line in lines)
            if time.monotonic() >= next_look_s or paths.outcome.exists():
                state = _find(reader, cell_id, trial)
                if (news := describe(state)) != said:
                    yield from ((True, line) for line in log.new_lines(is_last=state.outcome not in UNFINISHED))
                    yield False, (said := news)
                if state.outcome not in UNFINISHED or (state.outcome == "pending" and state.allocation is None):
                    yield from ((True, line) for line in log.new_lines(is_last=True))
                    return
                next_look_s = time.monotonic() + state_every_s
            time.sleep(look_every_s)
    finally:
        log.close()


def _find(reader: SweepReader, cell_id: str, trial: int) -> TrialState:
    return next(found for found in reader.read().of_cell(cell_id) if found.trial == trial)


def describe(state: TrialState) -> str:
    """Return where a trial stands, in one line that changes only when that does."""
    head = f"trial {state.trial}: "
    if state.outcome == "running":
        where = f" in allocation {state.allocation}" if state.allocation is not None else ""
        return f"{head}running{where}, attempt {state.attempt}"
    note = f": {state.because}" if state.because else ""
    if state.outcome != "pending":
        return f"{head}{state.outcome}{note}"
    return f"{head}pending{note}; " + (
        f"it waits in allocation {state.allocation}" if state.allocation is not None else "nothing is to run it now"
    )


def allocation_logs(paths: AllocationPaths) -> list[Path]:
    """Return the logs of an allocation: what its worker said, what Slurm's own processes said."""
    job = read_document(paths.job, Job)
    found = [paths.log, *([paths.sweep.folder / job.log] if job is not None else [])]
    return [path for path in found if path.is_file()]


def follow_files(paths: AllocationPaths, is_over: Iterator[bool] | None = None) -> Iterator[str]:
    """Yield the lines of an allocation's logs; with `is_over`, go on until it yields True."""
    streams: dict[Path, BinaryIO] = {}
    rests: dict[Path, bytes] = {}
    try:
        while True:
            over = next(is_over) if is_over is not None else True
            for path in allocation_logs(paths):
                stream = streams.setdefault(path, path.open("rb")) if path not in streams else streams[path]
                data = rests.get(path, b"") + stream.read()
                end = len(data) if over else data.rfind(b"\n") + 1
                rests[path] = data[end:]
                yield from data[:end].decode(errors="replace").splitlines()
            if over:
                return
            time.sleep(LOOK_EVERY_S)
    finally:
        for stream in streams.values():
            stream.close()
