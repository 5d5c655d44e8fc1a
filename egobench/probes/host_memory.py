"""How much more of the host's memory this process may take before the kernel ends it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path("/sys/fs/cgroup")


def resident_bytes() -> int:
    """Return what this process holds now."""
    return int(psutil.Process().memory_info().rss)


def available_bytes() -> int:
    """Return what is free for all processes here together: of the machine, and of every cgroup around this process."""
    groups = Path("/proc/self/cgroup").read_text() if os.path.exists("/proc/self/cgroup") else ""
    return min([int(psutil.virtual_memory().available), *cgroup_room(groups, ROOT)])


def cgroup_room(groups: str, root: Path) -> Iterator[int]:
    """Yield the room below each memory limit up to the root, of version 1 and 2.

    Args:
        groups: The text of /proc/<pid>/cgroup.
        root: /sys/fs/cgroup.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        folder = base / path.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(base):
                with contextlib.suppress(OSError, ValueError):  # no file, or the word `max`
                    room = int((place / limit).read_text()) - int((place / used).read_text())
                    yield max(0, room + _cache_bytes(place / "memory.stat"))


def _cache_bytes(stat: Path) -> int:
    # Files that were read count as used, and are given back when somebody asks for memory.
    with contextlib.suppress(OSError):
        if found := re.search(r"^(?:total_)?inactive_file (\d+)", stat.read_text(), re.MULTILINE):
            return int(found[1])
    return 0
