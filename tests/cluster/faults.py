"""Faults that any cluster knows. Each injector injects one and returns what it hit, or None where there was nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.cluster.ground import Attempt, Fire

Injector = Callable[[Fire], list[Attempt] | None]
FILLER: Final = "filler"
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
    send(pid, signal.SIGSTOP)
    fire.later(2, lambda: send(pid, signal.SIGCONT))
    return hit


def kill_worker(fire: Fire) -> list[Attempt] | None:
    """SIGKILL of an allocation's worker on one node."""
    workers = fire.ground.workers()
    busy = [pid for pid, number in workers.items() if fire.ground.run_by(number)]
    if not workers:
        return None
    pid = fire.chance.choice(busy or list(workers))
    hit = fire.ground.run_by(workers[pid])
    send(pid, signal.SIGKILL)
    return hit


def _signal_one(fire: Fire, pids: Sequence[int], sign: signal.Signals) -> list[Attempt] | None:
    if not pids:
        return None
    pid = fire.chance.choice(pids)
    hit = _hit_by(fire, pid)
    send(pid, sign)
    return hit


def _hit_by(fire: Fire, pid: int) -> list[Attempt]:
    """Return the attempt that a rank is of."""
    with contextlib.suppress(OSError):
        folder = Path(os.readlink(f"/proc/{pid}/fd/2")).parent.parent
        return [attempt for attempt in fire.ground.running() if attempt[:2] == (folder.parent.name, _number(folder))]
    return []


def _number(folder: Path) -> int:
    return int(folder.name) if folder.name.isdigit() else -1


def send(pid: int, sign: signal.Signals) -> None:
    """Signal a process, if it is still there."""
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
    running = fire.ground.running()
    if not running:
        return None
    cell = fire.chance.choice(running)[0]
    fire.ground.seconds.append(fire.ground.command("cancel", str(fire.ground.sweep), "--cell", cell))
    return [attempt for attempt in running if attempt[0] == cell]


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
