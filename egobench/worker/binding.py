"""Each rank on its own share of the node's CPUs, those nearest its GPU."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from egobench.probes.device import nvml_handle
from egobench.records.provenance import Binding
from egobench.records.trial import Placement
from egobench.worker.slurm import expand

_NODES: Final = Path("/sys/devices/system/node")
_CPUS: Final = Path("/sys/devices/system/cpu")
_PCI: Final = Path("/sys/bus/pci/devices")


def bind(placement: Placement, rank: int) -> Binding | None:
    """Keep this rank, before it starts any work, to its CPUs; None where the site does not bind."""
    if placement.binding != "spread":
        return None
    local, ranks_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpu = placement.device == "cuda"
    wanted = [gpu_numa_node(index) if on_gpu else None for index in range(ranks_here)]
    nodes = numa_nodes()
    cpus = shares(in_order(os.sched_getaffinity(0)), nodes, wanted)[local]
    for thread in Path("/proc/self/task").iterdir():  # asking for the GPUs may have started some
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cpus)
    return Binding(
        rank=rank,
        node=socket.gethostname(),
        cpus=tuple(sorted(cpus)),
        numa_node=next((node for node, members in nodes.items() if set(cpus) <= members), None),
        gpu=local if on_gpu else None,
    )


def shares(
    allowed: Sequence[int], nodes: Mapping[int, frozenset[int]], wanted: Sequence[int | None]
) -> list[tuple[int, ...]]:
    """Share CPUs out among the ranks of a node. Pure.

    Args:
        allowed: CPUs, neighbours next to each other.
        nodes: NUMA node -> its CPUs.
        wanted: The NUMA node of each rank's GPU, None where it has none or nobody can tell.

    Returns:
        Each rank's CPUs: of its NUMA node, if all ranks want one that has CPUs for them, else an even split.
    """
    everywhere = _split(allowed, len(wanted))
    found: list[tuple[int, ...]] = list(everywhere)
    for node in set(wanted):
        members = [rank for rank, its in enumerate(wanted) if its == node]
        here = [cpu for cpu in allowed if node is not None and cpu in nodes.get(node, frozenset())]
        if len(here) < len(members):
            return everywhere  # some ranks near, others anywhere: they would get into each other's way
        for rank, cpus in zip(members, _split(here, len(members)), strict=True):
            found[rank] = cpus
    return found


def _split(cpus: Sequence[int], ways: int) -> list[tuple[int, ...]]:
    if len(cpus) < ways:
        return [(cpus[index % len(cpus)],) for index in range(ways)]
    bounds = [len(cpus) * index // ways for index in range(ways + 1)]
    return [tuple(cpus[low:high]) for low, high in itertools.pairwise(bounds)]


def in_order(cpus: set[int]) -> list[int]:
    """Return CPUs so that threads of one core, and cores of one package, are neighbours."""
    return sorted(cpus, key=lambda cpu: (_topology(cpu, "physical_package_id"), _topology(cpu, "core_id"), cpu))


def _topology(cpu: int, what: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int((_CPUS / f"cpu{cpu}" / "topology" / what).read_text())
    return 0


def numa_nodes() -> dict[int, frozenset[int]]:
    """Return NUMA node -> its CPUs, as the kernel tells; empty where it does not."""
    found = {}
    for folder in _NODES.glob("node[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            text = (folder / "cpulist").read_text().strip()
            found[int(folder.name[4:])] = frozenset(int(cpu) for cpu in expand(f"[{text}]")) if text else frozenset()
    return found


def gpu_numa_node(index: int) -> int | None:
    """Return the NUMA node of a visible GPU; None where the kernel does not tell (a virtual machine, one node)."""
    if index >= torch.cuda.device_count():
        return None
    found = nvml_handle(torch.device("cuda", index))
    if found is None:
        return None
    nvml, handle = found
    with contextlib.suppress(OSError, ValueError, nvml.NVMLError):
        told = nvml.nvmlDeviceGetPciInfo(handle).busId
        address = (told.decode() if isinstance(told, bytes) else told).lower()
        # NVML gives the domain eight digits, the kernel four.
        node = int((_PCI / address[-12:] / "numa_node").read_text())
        return node if node >= 0 else None
    return None
