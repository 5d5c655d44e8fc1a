"""The stand-in's srun."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Any

from book import Book
from words import parse


def srun(book: Book, arguments: list[str]) -> int:
    """Start one task on each node, wait for all, and end the rest when one fails."""
    options, command = parse(
        arguments, flags={"u", "l", "K", "Q", "unbuffered", "exclusive", "overlap", "O"}, stop=True
    )
    job_nodes = os.environ.get("SLURM_JOB_NODELIST", "127.0.1.1").split(",")
    nodes = job_nodes[: int(options.get("nodes") or options.get("N") or len(job_nodes))]
    per_node = int(options.get("ntasks-per-node", "1"))
    places = [(node, local) for node in nodes for local in range(per_node)]
    children = []
    for rank, (node, local) in enumerate(places):
        env = os.environ | {
            "STANDIN_STEP": "0", "SLURM_STEP_ID": "0", "SLURM_STEPID": "0", "SLURM_PROCID": str(rank),
            "SLURM_NODEID": str(nodes.index(node)), "SLURM_LOCALID": str(local), "SLURM_NTASKS": str(len(places)),
            "SLURM_NPROCS": str(len(places)), "SLURM_STEP_NUM_NODES": str(len(nodes)), "SLURMD_NODENAME": node,
            "SLURM_NNODES": str(len(nodes)), "SLURM_STEP_NODELIST": ",".join(nodes),
            "SLURM_STEP_NUM_TASKS": str(len(places)),
            "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURM_SRUN_COMM_HOST": "127.0.0.1",
        }  # fmt: skip
        out = _log(options.get("output"), rank, node)
        error = _log(options.get("error"), rank, node) or out
        children.append(subprocess.Popen(command, env=env, stdout=out, stderr=error, start_new_session=True))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # each task has had it already
    return _wait(children)


def _log(name: str | None, rank: int, node: str) -> Any:
    if name is None:
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID", ""), os.environ.get("SLURM_ARRAY_TASK_ID", "")
    for sign, value in {"A": array, "a": task, "j": os.environ["SLURM_JOB_ID"], "t": str(rank), "N": node}.items():
        name = name.replace(f"%{sign}", value)
    return open(name, "ab")


def _wait(children: list[subprocess.Popen[bytes]]) -> int:
    failed_at, worst = None, 0
    while None in (codes := [child.poll() for child in children]):
        if any(codes) and failed_at is None:
            failed_at = time.monotonic()
            for child in children:
                if child.poll() is None:
                    child.terminate()
        if failed_at is not None and time.monotonic() > failed_at + 5:
            for child in children:
                if child.poll() is None:
                    child.kill()
        time.sleep(0.02)
    for child in children:
        worst = max(worst, child.returncode if child.returncode >= 0 else 128 - child.returncode)
    return worst
