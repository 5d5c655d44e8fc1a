"""A scripted Slurm: its commands really run jobs on this machine, and produce on request what a real one will not.

A one-machine Slurm never says OUT_OF_MEMORY, BOOT_FAIL or DEADLINE, never loses its database for a moment at the wrong
time, never gives job ids out again. This one does when told to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.cluster.daemons import wait_until
from tests.cluster.environment import variables
from tests.cluster.standin.book import FRESH, IN_QUEUE, LIVE, Book

HERE: Final = Path(__file__).parent
PROGRAMS: Final = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "srun")
TOO_MANY: Final = (
    "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: "
    "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)


class StandIn:
    """A stand-in cluster, its folder and its controller process, which ends with this one."""

    def __init__(self, base: Path, controller: subprocess.Popen[bytes]) -> None:
        self.base, self.book, self._controller = base, Book(base), controller
        path = os.environ.get("PATH", os.defpath)
        self.env: dict[str, str] = {"PATH": f"{base}/bin:{path}", "SLURM_CONF": "/nonexistent/slurm.conf"}

    @classmethod
    def up(cls, base: Path | None = None, *, nodes: int = 2, gpus: int = 4) -> StandIn:
        """Start one; nodes are called 127.0.1.1, ..., which resolve without anybody's help."""
        base = base or Path(tempfile.mkdtemp(prefix="standin-"))
        (base / "bin").mkdir(parents=True, exist_ok=True)
        for program in PROGRAMS:
            entry = base / "bin" / program
            entry.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {HERE}/commands.py {program} {base} "$@"\n')
            entry.chmod(0o755)
        with Book(base).open() as state:
            state.update(FRESH, nodes=[f"127.0.1.{number}" for number in range(1, nodes + 1)], gpus=gpus)
        command = [sys.executable, "-S", "-E", str(HERE / "controller.py"), str(base), str(os.getpid())]
        with (base / "controller.log").open("ab") as log:
            return cls(base, subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))

    def down(self) -> None:
        """End it with all its jobs."""
        self.tell(stop=True)
        self._controller.wait(20)
        shutil.rmtree(self.base, ignore_errors=True)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Put its commands first on this process's PATH."""
        with variables(self.env):
            yield

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of its commands."""
        return subprocess.run(command, env=os.environ | self.env, capture_output=True, text=True, check=False)

    # ---------------------------------------------------------------- what a cluster may do
    def tell(self, **told: Any) -> None:
        """Change how it behaves from now on.

        sacct: "down", "disabled" or "ok"; sacct_lags: True shows what was known when this was said;
        squeue_hangs_s: squeue answers so late, and then with an error; controller_down: nothing answers, jobs go on;
        refuse, refuse_because: sbatch fails so often; pending_because: nothing starts any more, for this reason.
        """
        with self.book.open() as state:
            state["told"].update(told)
            if told.get("sacct_lags"):
                state["sacct_at"] = {"jobs": state["jobs"], "history": state["history"]}

    def refuse(self, times: int, because: str = TOO_MANY) -> None:
        """Let sbatch fail this often."""
        self.tell(refuse=times, refuse_because=because)

    def end(
        self,
        job_id: str,
        state: str,
        exit_code: str = "0:0",
        *,
        requeue: bool = False,
        hold: bool = False,
        crash: bool = False,
        warn_s: float = 0,
        shown_s: float = 0,
    ) -> None:
        """End a running job so that this is its state.

        Args:
            job_id: As squeue shows it.
            state: Slurm's word.
            exit_code: As sacct shows it.
            requeue: It goes back to the queue.
            hold: And is held there.
            crash: SIGKILL at once, instead of SIGTERM and patience.
            warn_s: Its warning signal comes first, this long before.
            shown_s: How long sacct shows the state although the job waits to start again.
        """
        ending = {"state": state, "exit": exit_code, "requeue": requeue, "hold": hold, "crash": crash}
        with self.book.open() as book:
            book["jobs"][job_id]["ending"] = ending | {"kill_at": None, "warn": warn_s, "shown_s": shown_s}

    def restart_ids(self) -> None:
        """Give job ids out again from 1."""
        with self.book.open() as state:
            state["next_id"] = 1

    # ---------------------------------------------------------------- what it knows
    def jobs(self, *states: str) -> dict[str, dict[str, Any]]:
        """Return the jobs in these states; default: those in the queue."""
        with self.book.open() as state:
            return {key: job for key, job in state["jobs"].items() if job["state"] in (states or IN_QUEUE)}

    def running(self) -> list[str]:
        """Return the ids of the jobs on nodes."""
        return sorted(self.jobs(*LIVE))

    def state(self, job_id: str) -> str:
        with self.book.open() as state:
            return str(state["jobs"][job_id]["state"])

    def wait_state(self, job_id: str, *states: str, patience_s: float = 20) -> None:
        """Wait until the job is in one of these states."""
        wait_until(lambda: self.state(job_id) in states, patience_s, f"job {job_id} to be {' or '.join(states)}")

    def settle(self) -> None:
        """Behave again: answer, start jobs, forget what was told."""
        with self.book.open() as state:
            state["told"] = {}
        time.sleep(0.1)
