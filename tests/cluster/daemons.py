"""Processes that outlive the call that starts them, known by their pid files."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path


class NotReady(Exception):
    """Something did not come up in time."""


class Daemons:
    """The daemons of one cluster: `run/<name>.pid`, `log/<name>.out`."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def launch(self, name: str, *command: str, env: Mapping[str, str]) -> None:
        """Start it, unless it runs already."""
        if self.alive(name):
            return
        with (self.base / "log" / f"{name}.out").open("ab") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True, cwd="/"
            )
        self._children[name] = child
        self._file(name).write_text(str(child.pid))

    def alive(self, name: str) -> bool:
        return self.pid(name) is not None

    def pid(self, name: str) -> int | None:
        """Return its pid while it runs and is surely ours: a pid file may be older than the machine's boot."""
        if name in self._children:
            self._children[name].poll()
        try:
            pid = int(self._file(name).read_text())
        except (OSError, ValueError):
            return None
        return pid if self._is_ours(pid) else None

    def _is_ours(self, pid: int) -> bool:
        """Return whether a process runs and names our folder in its command line or environment."""
        try:
            told = Path(f"/proc/{pid}/cmdline").read_bytes() + b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
            gone = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return False
        return f"{self.base}/".encode() in told and not gone

    def stop(self, name: str, sign: signal.Signals = signal.SIGTERM, patience_s: float = 10) -> None:
        """Send the signal, wait, then kill. Does nothing where it does not run."""
        if (pid := self.pid(name)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
            with contextlib.suppress(NotReady):
                wait_until(lambda: not self.alive(name), patience_s, name)
            if self.alive(name):
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: not self.alive(name), 5, f"the end of {name}")
        self._file(name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Return what was started and not stopped, whether it lives or not."""
        return sorted(path.stem for path in (self.base / "run").glob("*.pid") if not path.stem.endswith(".own"))

    def _file(self, name: str) -> Path:
        return self.base / "run" / f"{name}.pid"


def wait_until(ready: Callable[[], bool], patience_s: float, what: str) -> None:
    """Ask again and again.

    Raises:
        NotReady: not in time.
    """
    deadline = time.monotonic() + patience_s
    while not ready():
        if time.monotonic() > deadline:
            raise NotReady(f"{what}: not after {patience_s:g} s")
        time.sleep(0.02)
