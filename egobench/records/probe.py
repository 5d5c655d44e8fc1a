"""A probe of a site's nodes: what `egobench doctor` asks of them, and what each of them answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from egobench.records.provenance import Gpu
from egobench.spec.strict import Record


class ProbeRequest(Record):
    """`probe.json`: the whole payload of the probe job."""

    schema_version: Literal[1] = 1
    token: str
    """Random; a node that sees the folder can repeat it."""
    launcher: Literal["local", "slurm"]
    device: Literal["cpu", "cuda"]
    num_nodes: int
    ranks_per_node: int
    limit_s: float
    """Each node gives up after so long, and says how far it came."""


class NodeSeen(Record):
    """`seen/<node>.json`: the first thing that a node writes, before it imports anything heavy."""

    token: str
    """As read on the node."""
    node: str
    at: float
    """Unix time of the node, s."""


class Ping(Record):
    """`ping/<number>.json` of the login node, and `pong/<number>.<node>.json` of a node."""

    at: float
    """Unix time of who writes, s."""


class ProbedGpu(Gpu):
    """One GPU as a rank sees it."""

    compute_capability: tuple[int, int]


class NodeAnswer(Record):
    """`nodes/<node>.json`: what one node is like. Written once it has looked at itself."""

    node: str
    egobench: str
    code_digest: str
    python: str
    torch: str | None = None
    """None: it cannot be imported."""
    problem: str = ""
    """Why torch cannot be imported, or why the GPUs cannot be looked at."""
    packages: dict[str, str] = {}
    absent: tuple[str, ...] | None = None
    """Packages and commands of runtimes that are not there; None: an older egobench answered."""
    cuda: str | None = None
    """That torch was built for."""
    nccl: str | None = None
    gpus: tuple[ProbedGpu, ...] = ()
    num_cpus: int
    """That this process may use."""
    memory_bytes: int
    """That this process may use: of the machine, or of the job's cgroup."""
    shm_bytes: int | None = None
    """Size of /dev/shm; None: there is none."""
    scratch: str
    """Folder for temporary files."""
    scratch_free_bytes: int | None = None
    """None: it cannot be written."""
    limits: dict[str, int | None] = {}
    """ulimit -> soft limit; None: unlimited."""


class ReduceAnswer(Record):
    """`reduce/<node>.json`: what came of an all-reduce over all ranks of all nodes."""

    ok: bool
    problem: str = ""
    backend: Literal["gloo", "nccl"]
    num_ranks: int
    num_bytes: int = 0
    """Of one buffer."""
    time_s: float | None = None
    """Of one all-reduce of it."""

    @property
    def bytes_per_s(self) -> float | None:
        """Return the bus bandwidth: what each rank's link carries. Source: nccl-tests, doc/PERFORMANCE.md."""
        return self.num_bytes / self.time_s * 2 * (self.num_ranks - 1) / self.num_ranks if self.time_s else None


@dataclass(frozen=True)
class ProbePaths:
    """Every path of one probe."""

    folder: Path

    @property
    def request(self) -> Path:
        return self.folder / "probe.json"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def seen(self, node: int) -> Path:
        return self.folder / "seen" / f"{node}.json"

    def node(self, node: int) -> Path:
        return self.folder / "nodes" / f"{node}.json"

    def reduce(self, node: int) -> Path:
        return self.folder / "reduce" / f"{node}.json"

    def ping(self, number: int) -> Path:
        return self.folder / "ping" / f"{number}.json"

    def pong(self, number: int, node: int) -> Path:
        return self.folder / "pong" / f"{number}.{node}.json"
