"""Faults of the real Slurm of `lab.py`: nodes, daemons, what a scheduler and an administrator do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.cluster.faults import send
from tests.cluster.ground import Attempt, Fire
from tests.cluster.lab import Cluster

LabInjector = Callable[[Fire, Cluster], list[Attempt] | None]
SKEWS_S: Final = (-90, -20, 20, 90)


@dataclass(frozen=True)
class Running:
    """A job on nodes."""

    job_id: str
    raw_id: str
    nodes: tuple[str, ...]


def _jobs(lab: Cluster) -> list[Running]:
    lines = lab.run("squeue", "-h", "-r", "-t", "R", "-o", "%i|%A|%N|%j", check=False).splitlines()
    found = []
    for line in lines:
        job_id, raw_id, nodes, name = line.split("|", 3)
        if name.startswith("egobench-"):
            names = lab.run("scontrol", "show", "hostnames", nodes, check=False).split()
            found.append(Running(job_id, raw_id, tuple(names)))
    return found


def _hit(fire: Fire, job: Running) -> list[Attempt]:
    """Return what a job runs."""
    return fire.ground.run_by(fire.ground.allocation_of(job.job_id))


def _one(fire: Fire, lab: Cluster, nodes: int = 1) -> Running | None:
    jobs = [job for job in _jobs(lab) if len(job.nodes) >= nodes]
    busy = [job for job in jobs if _hit(fire, job)]  # what has a trial under way is hit first
    return fire.chance.choice(busy or jobs) if jobs else None


def _crash(fire: Fire, lab: Cluster, name: str, noticed: bool = True, down_s: float = 1.0) -> None:
    if not lab.daemons.alive(f"node.{name}"):
        return
    lab.daemons.stop(f"node.{name}", signal.SIGKILL)
    if noticed:
        lab.run("scontrol", "update", f"nodename={name}", "state=down", "reason=crash", check=False)
    fire.later(down_s, lambda: lab.boot_node(name))


def node_crash(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """A node dies, with the job's first task on it."""
    if (job := _one(fire, lab)) is None:
        return None
    hit = _hit(fire, job)
    _crash(fire, lab, job.nodes[0])
    return hit


def second_node_crash(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """The second node of a two-node job dies."""
    if (job := _one(fire, lab, nodes=2)) is None:
        return None
    hit = _hit(fire, job)
    _crash(fire, lab, job.nodes[1])
    return hit


def unnoticed_crash(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """A node dies and Slurm finds out by itself."""
    if (job := _one(fire, lab)) is None:
        return None
    hit = _hit(fire, job)
    _crash(fire, lab, fire.chance.choice(job.nodes), noticed=False, down_s=16)
    return hit


def kill_step_daemon(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """SIGKILL of the slurmstepd of a job's step: Slurm loses sight of tasks that go on."""
    if (job := _one(fire, lab)) is None:
        return None
    found = subprocess.run(
        ["pgrep", "-f", f"slurmstepd: \\[{job.raw_id}\\.0\\]"], capture_output=True, text=True, check=False
    )
    daemons = [int(pid) for pid in found.stdout.split() if lab.owns(int(pid))]
    if not daemons:
        return None
    hit = _hit(fire, job)
    send(fire.chance.choice(daemons), signal.SIGKILL)
    return hit


def controller_crash(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """slurmctld is killed, and started again some seconds later."""
    lab.kill_controller()
    fire.later(fire.chance.uniform(0.5, 5), lab.restart_controller)
    return fire.ground.running()


def database_down(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """slurmdbd is away for some seconds: sacct fails."""
    lab.stop_database()
    fire.later(fire.chance.uniform(2, 8), lab.start_database)
    return fire.ground.running()


def preemption(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """A job of a higher tier wants the GPUs."""
    if (job := _one(fire, lab)) is None:
        return None
    with contextlib.suppress(subprocess.CalledProcessError):
        lab.preempt(seconds=1, nodes=fire.chance.randint(1, lab.shape.nodes))
        return fire.ground.running()
    return _hit(fire, job)


def time_limit(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """The time limit of a job is moved to 45 s from now."""
    if (job := _one(fire, lab)) is None:
        return None
    with contextlib.suppress(subprocess.CalledProcessError):
        lab.expire(job.job_id, 45)
    return _hit(fire, job)


def scancel_task(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """scancel of one array task."""
    if (job := _one(fire, lab)) is None:
        return None
    hit = _hit(fire, job)
    lab.run("scancel", job.job_id, check=False)
    return hit


def scancel_all(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """An administrator cancels everything that the user has."""
    if _one(fire, lab) is None:
        return None
    hit = fire.ground.running()
    lab.run("scancel", f"--user={os.getuid()}", check=False)
    return hit


def requeue(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """scontrol requeue."""
    if (job := _one(fire, lab)) is None:
        return None
    hit = _hit(fire, job)
    lab.run("scontrol", "requeue", job.job_id, check=False)
    return hit


def suspend(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """A job is suspended for up to twelve seconds."""
    if (job := _one(fire, lab)) is None:
        return None
    hit = _hit(fire, job)
    lab.run("scontrol", "suspend", job.job_id, check=False)
    fire.later(fire.chance.uniform(2, 12), lambda: lab.run("scontrol", "resume", job.job_id, check=False))
    return hit


def drain(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """A node is drained for some seconds."""
    name = fire.chance.choice(lab.shape.names())
    lab.run("scontrol", "update", f"nodename={name}", "state=drain", "reason=maintenance", check=False)
    back = ("scontrol", "update", f"nodename={name}", "state=resume")
    fire.later(fire.chance.uniform(2, 8), lambda: lab.run(*back, check=False))
    return fire.ground.running()


def partition_down(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """The partitions start nothing for some seconds."""
    _set_partitions(lab, "down")
    fire.later(fire.chance.uniform(2, 6), lambda: _set_partitions(lab, "up"))
    return fire.ground.running()


def _set_partitions(lab: Cluster, state: str) -> None:
    for name in ("main", "scav"):
        lab.run("scontrol", "update", f"partitionname={name}", f"state={state}", check=False)


def clock_skew(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """Workers that start on a node in the next 45 s have a wrong clock."""
    name = fire.chance.choice(lab.shape.names())
    mark = fire.ground.folder / f"skew.{name}"
    with contextlib.suppress(OSError):
        mark.write_text(f"{fire.chance.choice(SKEWS_S):+d}")
    fire.later(45, lambda: mark.unlink(missing_ok=True))
    return fire.ground.running()


REAL: Final[dict[str, LabInjector]] = {
    "node crash": node_crash,
    "crash of the second node": second_node_crash,
    "crash that Slurm notices late": unnoticed_crash,
    "slurmstepd killed": kill_step_daemon,
    "controller killed and restarted": controller_crash,
    "accounting database down": database_down,
    "preemption": preemption,
    "time limit, with warning": time_limit,
    "scancel of one array task": scancel_task,
    "scancel of everything": scancel_all,
    "scontrol requeue": requeue,
    "allocation suspended": suspend,
    "node drained": drain,
    "partition down": partition_down,
    "clock skew on a node": clock_skew,
}
