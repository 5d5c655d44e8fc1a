"""What a trial ran on and with: `provenance.json`. Captured by allow-list; holds no environment dump."""

from __future__ import annotations

from typing import Literal

from egobench.spec.strict import Record


class Gpu(Record):
    """One GPU as NVML describes it."""

    name: str
    memory_bytes: int
    power_limit_w: float | None = None
    driver: str | None = None
    uuid: str | None = None


class Binding(Record):
    """Which CPUs one rank kept to."""

    rank: int
    node: str
    """Host name."""
    cpus: tuple[int, ...]
    """As the kernel numbers them."""
    numa_node: int | None = None
    """Where all of them belong to one; None: unknown, or several."""
    gpu: int | None = None
    """Index on the node; None on a CPU site."""


class Provenance(Record):
    """Code, packages, hardware and inputs of one trial."""

    schema_version: Literal[1] = 1
    git_sha: str | None
    """None outside a git checkout."""
    dirty_digest: str | None
    """Digest of the uncommitted changes; None: clean or no checkout."""
    code_digest: str
    """Digest of egobench's own source files."""
    egobench: str
    python: str
    packages: dict[str, str]
    """Name -> version, of the packages that matter."""
    platform: str
    hostname: str
    cpu: str
    num_cpus: int
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    cuda: str | None = None
    nccl: str | None = None
    topology: str | None = None
    """How the GPUs are linked, as NVML sees it."""
    data_digest: str | None = None
    num_train: int | None = None
    num_validation: int | None = None
    skipped: dict[str, int] = {}
    """Samples left out, by reason."""
    model_digest: str | None = None
    allocator: str | None = None
    """Settings of torch's allocator on a GPU (`PYTORCH_ALLOC_CONF`)."""
    threads_per_rank: int | None = None
    binding: tuple[Binding, ...] = ()
    """Of every rank; empty: ranks were not bound, and the kernel moved them at will."""
    slurm: dict[str, str] = {}
    """SLURM_JOB_ID and the like, by allow-list."""
