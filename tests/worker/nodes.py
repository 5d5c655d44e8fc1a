"""Two nodes on one machine: a worker for each, told by SLURM_* variables which one it is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from egobench.records.allocation import AllocationPaths
from egobench.records.pulse import read_pulse
from egobench.records.store import TrialPaths
from tests.worker.trials import BODY, ROOT


def start_task(
    paths: AllocationPaths,
    job_id: str,
    node: int = 0,
    num_nodes: int = 1,
    restarts: int = 0,
    body: str = BODY,
    **more: str,
) -> subprocess.Popen[bytes]:
    """Start the worker as srun would on one node."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment |= {
        "SLURM_JOB_ID": job_id,
        "SLURM_RESTART_COUNT": str(restarts),
        "SLURM_NODEID": str(node),
        "SLURM_STEP_NODELIST": f"egonode[1-{num_nodes}]" if num_nodes > 1 else "egonode1",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        **more,
    }
    command = [sys.executable, "-m", "egobench.worker", "--slurm", str(paths.allocation), "--body", body]
    null = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=null, stdout=null, stderr=null)


def start_nodes(
    paths: AllocationPaths, job_id: str, restarts: int = 0, second: Mapping[str, str] | None = None
) -> list[subprocess.Popen[bytes]]:
    """Start both workers; `second` are further variables of the second node."""
    return [
        start_task(paths, job_id, 0, 2, restarts),
        start_task(paths, job_id, 1, 2, restarts, **(second or {})),
    ]


def await_steps(trial: TrialPaths, ranks: int, other_than: tuple[int, ...] = (), timeout_s: float = 150) -> list[int]:
    """Return the pids of the ranks once all of them have done some steps."""
    pids: list[int] = []

    def running() -> bool:
        pulses = [read_pulse(trial.rank_pulse(rank)) for rank in range(ranks)]
        pids[:] = [pulse.pid for pulse in pulses if pulse is not None and pulse.step > 2]
        return len(pids) == ranks and not set(pids) & set(other_than)

    await_it(running, "the ranks never got going", timeout_s)
    return pids


def await_it(condition: Callable[[], bool], otherwise: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def are_gone(pids: list[int]) -> bool:
    return not any(_is_alive(pid) for pid in pids)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
