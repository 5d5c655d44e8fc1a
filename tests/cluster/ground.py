"""One sweep under fire: its folder, the command that drives it, and what can be seen of it from outside.

Reads plain JSON and /proc only, so that what it sees does not depend on the code under test.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.cluster.sites import ROOT, SlurmSites

SHIM: Final = Path(__file__).with_name("shim")
EXIT_OK, EXIT_OUR_BUG, EXIT_TRIALS_FAILED = 0, 1, 3
AGAIN_AFTER_S: Final = 1.0
Attempt = tuple[str, int, int]
"""cell_id, trial, attempt."""


@dataclass
class Ground:
    """A sweep, and its driver."""

    folder: Path
    env: Mapping[str, str]
    """The cluster's."""
    name: str = "chaos"
    max_attempts: int = 3
    options: tuple[str, ...] = ()
    """Further ones of `egobench sweep`."""
    driver: subprocess.Popen[bytes] | None = None
    exits: list[int] = field(default_factory=list)
    seen_final: dict[tuple[str, int], str] = field(default_factory=dict)
    """Text of every `ok` outcome ever seen."""
    seen_claims: set[Attempt] = field(default_factory=set)
    seconds: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """Other commands on the same folder, that nobody waits for."""
    _left_at: float = 0.0

    # ---------------------------------------------------------------- set up
    def prepare(self, *, trials: int, steps: int, gpus: tuple[int, ...], site: Mapping[str, Any]) -> None:
        """Write the site, the wrapped python and the matrix."""
        sites = SlurmSites(self.folder, "")
        sites.write(**site)
        (self.folder / "python").write_text(self._wrapper())
        sites.matrix(self.name, trials=trials, steps=steps, gpus=gpus)

    def _wrapper(self) -> str:
        """Return a `python` that adds the stand-in body, a wrong clock and a slow disk on request."""
        return (
            "#!/bin/sh\n"
            f'export PYTHONPATH="$PYTHONPATH:{SHIM}:{ROOT}" CHAOS_SLOW={self.slow_mark}\n'
            f"skew={self.folder}/skew.$SLURMD_NODENAME\n"
            'if [ -e "$skew" ]; then export CHAOS_SKEW_S="$(cat "$skew")"; fi\n'
            'case " $* " in *" egobench.worker "*) set -- "$@" --body tests.worker.standin:run ;; esac\n'
            f'exec {sys.executable} "$@"\n'
        )

    @property
    def slow_mark(self) -> Path:
        return self.folder / "slow"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def sweep(self) -> Path:
        return self.runs / self.name

    @property
    def log(self) -> Path:
        return self.folder / "driver.log"

    # ---------------------------------------------------------------- the login side
    def command(self, *words: str) -> subprocess.Popen[bytes]:
        """Start an egobench command on the login node."""
        env = os.environ | dict(self.env) | {"PYTHONPATH": f"{SHIM}:{ROOT}", "CHAOS_SLOW": str(self.slow_mark)}
        with self.log.open("ab") as log:
            log.write(f"$ {time.time():.1f} egobench {' '.join(words)}\n".encode())
            log.flush()
            return subprocess.Popen(
                [sys.executable, "-m", "egobench", *words], env=env, cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def drive(self) -> None:
        """Start `egobench sweep`, the same command every time."""
        words = ["sweep", str(self.folder / f"{self.name}.yaml"), "--runs", str(self.runs)]
        self.driver = self.command(*words, f"--max-attempts={self.max_attempts}", *self.options)

    def poll(self) -> None:
        """See that somebody drives, as a patient user would; note what can be seen."""
        self.look()
        self.seconds = [process for process in self.seconds if process.poll() is None or self._note(process)]
        if self.driver is not None and self.driver.poll() is not None:
            self.exits.append(self.driver.returncode)
            self.driver, self._left_at = None, time.monotonic()
        if self.driver is None and time.monotonic() > self._left_at + AGAIN_AFTER_S and not self.is_over():
            self.drive()

    def _note(self, process: subprocess.Popen[bytes]) -> bool:
        self.exits += [process.returncode] if process.returncode == EXIT_OUR_BUG else []
        return False

    def is_over(self) -> bool:
        """Return whether the last command ended well and left nothing; what was cancelled it leaves to the next."""
        ended_well = self.driver is None and bool(self.exits) and self.exits[-1] in (EXIT_OK, EXIT_TRIALS_FAILED)
        return ended_well and self.num_missing() == 0

    def kill(self, sign: signal.Signals = signal.SIGKILL) -> bool:
        """Send the driver a signal."""
        if self.driver is None or self.driver.poll() is not None:
            return False
        os.kill(self.driver.pid, sign)
        return True

    # ---------------------------------------------------------------- what can be seen
    def look(self) -> None:
        """Remember every claim and every `ok` that is on disk now."""
        for folder in self.trial_folders():
            cell, trial = folder.parent.name, int(folder.name)
            if (claim := read(folder / "running.json")) is not None:
                self.seen_claims.add((cell, trial, claim["attempt"]))
            outcome = read(folder / "outcome.json")
            if outcome is not None and outcome["outcome"] == "ok":
                self.seen_final.setdefault((cell, trial), (folder / "outcome.json").read_text())

    def trial_folders(self) -> Iterator[Path]:
        for document in self.sweep.glob("*/*/trial.json"):
            yield document.parent

    def running(self) -> list[Attempt]:
        """Return the attempts that have a claim and no outcome."""
        found = []
        for folder in self.trial_folders():
            claim = read(folder / "running.json")
            if claim is not None and not (folder / "outcome.json").exists():
                found.append((folder.parent.name, int(folder.name), int(claim["attempt"])))
        return found

    def run_by(self, allocation: int | None) -> list[Attempt]:
        """Return what an allocation runs now."""
        claims = {
            attempt: read(self.sweep / attempt[0] / str(attempt[1]) / "running.json") for attempt in self.running()
        }
        return [attempt for attempt, claim in claims.items() if claim is not None and claim["allocation"] == allocation]

    def allocation_of(self, job_id: str) -> int | None:
        """Return the newest allocation that a job runs."""
        numbers = [
            int(path.parent.name)
            for path in self.sweep.glob("allocations/*/job.json")
            if (job := read(path)) is not None and job["job_id"] == job_id
        ]
        return max(numbers, default=None)

    def num_missing(self) -> int:
        """Return how many planned trials have no final outcome."""
        outcomes = [read(folder / "outcome.json") for folder in self.trial_folders()]
        again = [found for found in outcomes if found and found["interrupted"] and found["attempt"] < self.max_attempts]
        return outcomes.count(None) + len(again)

    def workers(self) -> dict[int, int]:
        """Return pid -> allocation of the workers, one on each node of each running allocation."""
        pattern = re.compile(rf"egobench\.worker .*{re.escape(str(self.sweep))}/allocations/(\d+)/")
        found = {pid: pattern.search(_command_line(pid)) for pid in pids()}
        return {pid: int(match[1]) for pid, match in found.items() if match is not None}

    def ranks(self) -> list[int]:
        """Return the pids of ranks: their stderr is a file of a trial."""
        found = []
        for pid in pids():
            with contextlib.suppress(OSError):
                log = Path(os.readlink(f"/proc/{pid}/fd/2"))
                if log.is_relative_to(self.sweep) and log.parent.name == "log":
                    found.append(pid)
        return found

    def leftovers(self) -> dict[int, str]:
        """Return pid -> name of every process that still has to do with the sweep."""
        mark = str(self.sweep)
        found = [pid for pid in pids() if pid != os.getpid() and mark in _command_line(pid)]
        return {pid: _command_line(pid).partition(" ")[0] for pid in (*found, *self.ranks())}


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def read(path: Path) -> dict[str, Any] | None:
    """Return a JSON document; None where there is none that is whole."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


@dataclass
class Fire:
    """What an injector works with."""

    ground: Ground
    chance: random.Random
    undo: list[tuple[float, Any]] = field(default_factory=list)

    def later(self, in_s: float, call: Any) -> None:
        """Call it then, or when the round ends."""
        self.undo.append((time.monotonic() + in_s, call))

    def tick(self, everything: bool = False) -> None:
        """Take back what is due."""
        due = [entry for entry in self.undo if everything or entry[0] <= time.monotonic()]
        self.undo = [entry for entry in self.undo if entry not in due]
        for _, call in sorted(due, key=lambda entry: entry[0]):
            call()
