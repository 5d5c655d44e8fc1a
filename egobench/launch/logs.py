"""`egobench logs`: the streams of a trial's ranks as one, each line with its rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from egobench.records.store import TrialPaths


class LogReader:
    """Reads whole new lines of all log files of a trial."""

    def __init__(self, paths: TrialPaths) -> None:
        self._paths = paths
        self._offsets: dict[Path, int] = {}

    def new_lines(self, is_last: bool = False) -> Iterator[str]:
        """Yield lines written since the last call; `is_last` also takes a last line without its end."""
        for path in self._files():
            with path.open("rb") as stream:
                stream.seek(self._offsets.get(path, 0))
                data = stream.read()
            whole = data if is_last else data[: data.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            rank, stream_name = path.name.split(".")
            mark = "" if stream_name == "out" else "!"
            for line in whole.decode(errors="replace").splitlines():
                yield f"[{rank}{mark}] {line}"

    def _files(self) -> list[Path]:
        streams = (".out", ".err")
        found = [path for path in self._paths.log.glob("*.*") if path.stem.isdigit() and path.suffix in streams]
        return sorted(found, key=lambda path: (int(path.stem), path.suffix != ".out"))


def follow(paths: TrialPaths, is_over: Callable[[], bool], every_s: float = 0.5) -> Iterator[str]:
    """Yield lines until the trial is over."""
    reader = LogReader(paths)
    while True:
        over = is_over()
        yield from reader.new_lines(is_last=over)
        if over:
            return
        time.sleep(every_s)
