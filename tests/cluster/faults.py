"""What a cluster does to jobs. Each injector does it once and returns whom it hit, or None where there was nobody.

The first table is of faults that any cluster shows, the second of those of the real Slurm of `lab.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.cluster.ground import FAKETIME, Attempt, Fire
from tests.cluster.lab import Cluster

Injector = Callable[[Fire], list[Attempt] | None]
LabInjector = Callable[[Fire, Cluster], list[Attempt] | None]
FILLER: Final = "filler"
SKEWS_S: Final = (-90, -20, 20, 90)
GET_FLAGS, SET_FLAGS, IMMUTABLE = 0x80086601, 0x40086602, 0x10  # linux/fs.h


# ---------------------------------------------------------------- anywhere: processes
def kill_rank(fire: Fire) -> list[Attempt] | None:
    """SIGKILL of one rank."""
    return _signal_one(fire, fire.ground.ranks(), signal.SIGKILL)


def stop_rank(fire: Fire) -> list[Attempt] | None:
    """SIGSTOP of one rank: it hangs."""
    return _signal_one(fire, fire.ground.ranks(), signal.SIGSTOP)


def pause_rank(fire: Fire) -> list[Attempt] | None:
    """SIGSTOP of one rank for two seconds."""
    ranks = fire.ground.ranks()
    if not ranks:
        return None
    pid = fire.chance.choice(ranks)
    hit = _hit_by(fire, pid)
    _send(pid, signal.SIGSTOP)
    fire.later(2, lambda: _send(pid, signal.SIGCONT))
    return hit


def kill_worker(fire: Fire) -> list[Attempt] | None:
    """SIGKILL of an allocation's worker on one node."""
    workers = fire.ground.workers()
    busy = [pid for pid, number in workers.items() if fire.ground.run_by(number)]
    if not workers:
        return None
    pid = fire.chance.choice(busy or list(workers))
    hit = fire.ground.run_by(workers[pid])
    _send(pid, signal.SIGKILL)
    return hit


def _signal_one(fire: Fire, pids: Sequence[int], sign: signal.Signals) -> list[Attempt] | None:
    if not pids:
        return None
    pid = fire.chance.choice(pids)
    hit = _hit_by(fire, pid)
    _send(pid, sign)
    return hit


def _hit_by(fire: Fire, pid: int) -> list[Attempt]:
    """Return the attempt that a rank is of."""
    with contextlib.suppress(OSError):
        folder = Path(os.readlink(f"/proc/{pid}/fd/2")).parent.parent
        return [attempt for attempt in fire.ground.running() if attempt[:2] == (folder.parent.name, _number(folder))]
    return []


def _number(folder: Path) -> int:
    return int(folder.name) if folder.name.isdigit() else -1


def _send(pid: int, sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sign)


# ---------------------------------------------------------------- anywhere: the login side
def kill_login(fire: Fire) -> list[Attempt] | None:
    """SIGKILL of `egobench sweep`; then the same command again."""
    return fire.ground.running() if fire.ground.kill() else None


def interrupt_login(fire: Fire) -> list[Attempt] | None:
    """Ctrl-C at `egobench sweep`; then the same command again."""
    return fire.ground.running() if fire.ground.kill(signal.SIGINT) else None


def second_driver(fire: Fire) -> list[Attempt] | None:
    """A second `egobench sweep` on the same folder."""
    ground = fire.ground
    if ground.driver is None:
        return None
    words = ["sweep", str(ground.folder / f"{ground.name}.yaml"), "--runs", str(ground.runs)]
    ground.seconds.append(ground.command(*words, f"--max-attempts={ground.max_attempts}"))
    return ground.running()


def cancel_cell(fire: Fire) -> list[Attempt] | None:
    """`egobench cancel --cell`."""
    cells = fire.ground.cells()
    if not cells or not fire.ground.running():
        return None
    cell = fire.chance.choice(cells)
    fire.ground.seconds.append(fire.ground.command("cancel", str(fire.ground.sweep), "--cell", cell))
    return [attempt for attempt in fire.ground.running() if attempt[0] == cell]


def cancel_sweep(fire: Fire) -> list[Attempt] | None:
    """`egobench cancel`; then the same command again."""
    if not fire.ground.running():
        return None
    hit = fire.ground.running()
    fire.ground.seconds.append(fire.ground.command("cancel", str(fire.ground.sweep)))
    return hit


# ---------------------------------------------------------------- anywhere: the shared file system
def full_disk(fire: Fire) -> list[Attempt] | None:
    """The file system is full for some seconds."""
    folder = fire.ground.folder
    space = os.statvfs(folder)
    if not os.path.ismount(folder) or not space.f_bavail:
        return None
    with (folder / FILLER).open("wb") as filler, contextlib.suppress(OSError):
        os.posix_fallocate(filler.fileno(), 0, space.f_bavail * space.f_bsize)
    fire.later(fire.chance.uniform(2, 6), lambda: (folder / FILLER).unlink(missing_ok=True))
    return fire.ground.running()


def read_only(fire: Fire) -> list[Attempt] | None:
    """Nothing in the sweep's folder can be created, renamed or opened for writing, for some seconds."""
    hit = fire.ground.running()
    if os.getuid() or not _set_immutable(fire.ground.sweep, True):
        return None
    fire.later(fire.chance.uniform(2, 6), lambda: _set_immutable(fire.ground.sweep, False))
    return hit


def _set_immutable(folder: Path, wanted: bool) -> bool:
    """Set or clear the flag on everything; a file system cannot be remounted read-only while files are open."""
    for path in [folder, *folder.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                before = struct.unpack("l", fcntl.ioctl(descriptor, GET_FLAGS, b"\0" * 8))[0]
                flags = before | IMMUTABLE if wanted else before & ~IMMUTABLE
                fcntl.ioctl(descriptor, SET_FLAGS, struct.pack("l", flags))
            except OSError:  # a file system that knows no such flag
                return False
            finally:
                os.close(descriptor)
    return True


def slow_files(fire: Fire) -> list[Attempt] | None:
    """Each file call takes up to 0.15 s, for some seconds."""
    fire.ground.slow_mark.touch()
    fire.later(fire.chance.uniform(4, 8), lambda: fire.ground.slow_mark.unlink(missing_ok=True))
    return fire.ground.running()


def torn_view(fire: Fire) -> list[Attempt] | None:
    """queue.json is lost, or cut off in the middle."""
    view = fire.ground.sweep / "queue.json"
    if not view.exists():
        return None
    with contextlib.suppress(OSError):
        view.unlink() if fire.chance.random() < 0.5 else view.write_text(view.read_text()[:40])
    return fire.ground.running()


# ---------------------------------------------------------------- the real Slurm
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
    _send(fire.chance.choice(daemons), signal.SIGKILL)
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
    """The partition starts nothing for some seconds."""
    lab.run("scontrol", "update", "partitionname=main", "state=down", check=False)
    back = ("scontrol", "update", "partitionname=main", "state=up")
    fire.later(fire.chance.uniform(2, 6), lambda: lab.run(*back, check=False))
    return fire.ground.running()


def clock_skew(fire: Fire, lab: Cluster) -> list[Attempt] | None:
    """Workers that start on a node in the next half minute have a wrong clock."""
    if not FAKETIME.exists():
        return None
    name = fire.chance.choice(lab.shape.names())
    mark = fire.ground.folder / f"skew.{name}"
    with contextlib.suppress(OSError):
        mark.write_text(f"{fire.chance.choice(SKEWS_S):+d}")
    fire.later(30, lambda: mark.unlink(missing_ok=True))
    return fire.ground.running()


EVERYWHERE: Final[dict[str, Injector]] = {
    "rank killed": kill_rank,
    "rank stopped for good": stop_rank,
    "rank stopped for 2 s": pause_rank,
    "worker killed": kill_worker,
    "login process killed": kill_login,
    "Ctrl-C at the login": interrupt_login,
    "second driver on the folder": second_driver,
    "egobench cancel --cell": cancel_cell,
    "egobench cancel": cancel_sweep,
    "file system full": full_disk,
    "file system read-only": read_only,
    "file system slow": slow_files,
    "queue.json lost or torn": torn_view,
}
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
