"""What Slurm told this process about its step, read here and nowhere else; and the two things asked of Slurm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from egobench.errors import EnvironmentProblem
from egobench.records.allocation import Allocation, Start
from egobench.records.outcome import OutcomeName

EARLY_S: Final = 90.0
"""Slurm warns of the time limit up to 60 s early, and does not look all the time."""
_PATIENCE_S: Final = 20.0
_SHORT_PATIENCE_S: Final = 5.0


@dataclass(frozen=True)
class SlurmStep:
    """The Slurm step that this process is a task of; one task a node."""

    job_id: str
    """A number that no other job has; but to Slurm's commands the one of an array's last task means the array."""
    array_task: str | None
    """`123_4`, where it is a task of an array."""
    restarts: int
    node_rank: int
    nodes: tuple[str, ...]
    node: str
    """Name of this node."""
    addresses: tuple[str, ...]
    """Where the first node may be reached, the likeliest first."""
    began_at: float | None
    """Unix time at which the job began, s, by Slurm's own clock; not every version tells."""
    ends_at: float | None

    @property
    def name(self) -> str:
        """Return what Slurm's commands know this job by, and no other."""
        return self.array_task or self.job_id

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @property
    def leads(self) -> bool:
        """Return whether this is the node that decides."""
        return self.node_rank == 0

    @property
    def token(self) -> str:
        """Return what tells this run of the job from any other."""
        return f"egobench/{self.job_id}/{self.restarts}"


def read_step(environment: Mapping[str, str] | None = None) -> SlurmStep:
    """Read the SLURM_* variables of a task.

    Raises:
        EnvironmentProblem: there are none; the worker is to be started by srun.
    """
    told = os.environ if environment is None else environment
    if "SLURM_JOB_ID" not in told:
        raise EnvironmentProblem("--slurm: SLURM_JOB_ID is not set; start the worker with srun, inside a job")
    names = told.get("SLURM_STEP_NODELIST") or told.get("SLURM_JOB_NODELIST") or told.get("SLURMD_NODENAME", "")
    nodes = tuple(expand(names)) or (os.uname().nodename,)
    rank = int(told.get("SLURM_NODEID", "0"))
    array, task = told.get("SLURM_ARRAY_JOB_ID"), told.get("SLURM_ARRAY_TASK_ID")
    launcher = told.get("SLURM_LAUNCH_NODE_IPADDR")
    return SlurmStep(
        job_id=told["SLURM_JOB_ID"],
        array_task=f"{array}_{task}" if array and task else None,
        restarts=int(told.get("SLURM_RESTART_COUNT") or 0),
        node_rank=rank,
        nodes=nodes,
        node=told.get("SLURMD_NODENAME") or (nodes[rank] if rank < len(nodes) else os.uname().nodename),
        # srun runs on the first node, unless somebody calls it from elsewhere; the name may not resolve.
        addresses=tuple(dict.fromkeys([launcher, nodes[0]] if launcher else [nodes[0]])),
        began_at=_time(told, "SLURM_JOB_START_TIME"),
        ends_at=_time(told, "SLURM_JOB_END_TIME"),
    )


def _time(told: Mapping[str, str], name: str) -> float | None:
    value = told.get(name, "")
    return float(value) if value.isdigit() and int(value) > 0 else None


def expand(names: str) -> list[str]:
    """Return the host names of a Slurm list: `n[1-3,7],gpu01` has five."""
    hosts: list[str] = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", names):
        found = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", item)
        if found is None:
            hosts.append(item)
            continue
        before, ranges, after = found.groups()
        numbers = [number for part in ranges.split(",") for number in _numbers(part)]
        hosts += [before + number + rest for number in numbers for rest in expand(after) or [""]]
    return hosts


def _numbers(part: str) -> list[str]:
    low, _, high = part.partition("-")
    return [str(number).zfill(len(low)) for number in range(int(low), int(high or low) + 1)]


def job_ends_at(step: SlurmStep, allocation: Allocation, now: float) -> float | None:
    """Return when Slurm will end the job, Unix time; None where it has no limit."""
    if step.ends_at is not None or allocation.time_limit_min is None:
        return step.ends_at
    return (step.began_at or now) + allocation.time_limit_min * 60


def outcome_of_warning(start: Start | None, now: float, warned_before_s: float) -> OutcomeName:
    """Return what a warned trial comes to: `timeout` near the job's end, unless Slurm says that it preempts the job."""
    if start is None or start.job_id is None or start.ends_at is None:
        return "preempted"
    if start.ends_at - now > warned_before_s + EARLY_S:
        return "preempted"
    # Seconds count now, and the controller may be what is in trouble.
    done = _ask("scontrol", "show", "job", "-o", start.job_id, patience_s=_SHORT_PATIENCE_S)
    found = re.search(r"\bPreemptTime=(\S+)", done.stdout) if done is not None and done.returncode == 0 else None
    return "preempted" if found is not None and found[1] not in ("None", "N/A", "Unknown") else "timeout"


def was_preempted(job_id: str) -> bool:
    """Return whether the run of the job before this one ended by preemption, as far as accounting can tell."""
    done = _ask("sacct", "--duplicates", "--allocations", "--noheader", "--parsable2", "--format=State", "-j", job_id)
    if done is None or done.returncode != 0:
        return False
    states = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return len(states) > 1 and states[-2].startswith("PREEMPTED")


def _ask(*command: str, patience_s: float = _PATIENCE_S) -> subprocess.CompletedProcess[str] | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=patience_s, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
