"""A site: where trials run (one YAML in slurm_templates/, or the built-in `local`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from egobench.spec.strict import Strict


class Site(Strict):
    """Partition, account, GPUs, set-up lines and limits of one cluster or machine."""

    why: str
    """One sentence: which machine this is."""
    launcher: Literal["local", "slurm"]
    """`local` runs allocations on this machine; `slurm` submits them."""
    device: Literal["cpu", "cuda"]
    """What a rank computes on."""
    gpu: str | None = None
    """Kind of GPU, a name of egobench/hardware.py; None on a CPU site."""
    gpus_per_node: int = Field(default=1, ge=1)
    """GPUs of one node (on a CPU site: ranks at most)."""
    max_nodes: int = Field(default=1, ge=1)
    """Nodes of one trial at most."""
    threads_per_rank: int | None = Field(default=None, ge=1)
    """CPU threads per rank; default: the cores are shared out evenly."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    cpus_per_gpu: int | None = Field(default=None, ge=1)
    memory_gib_per_node: int | None = Field(default=None, ge=1)
    modules: tuple[str, ...] = Field(default=(), strict=False)
    """Environment modules to load."""
    setup: tuple[str, ...] = Field(default=(), strict=False)
    """Shell lines run before the ranks start."""
    container: str | None = None
    """Image the ranks run in, where the site has containers."""
    time_limit_min: int = Field(default=120, ge=1)
    """Longest allocation."""
    trial_time_limit_s: float = Field(default=3600, gt=0)
    """A trial that runs longer ends as `timeout`."""
    quiet_limit_s: float = Field(default=20, gt=0)
    """A trial whose ranks neither progress nor use CPU or disk for this long ends as `hang`."""
    stall_limit_s: float = Field(default=1800, gt=0)
    """A trial that is busy but makes no progress for this long ends as `hang`."""
    cost_per_gpu_hour: float | None = Field(default=None, ge=0)
    """For the plan's estimate."""


LOCAL = Site(why="This machine, CPU ranks.", launcher="local", device="cpu", gpus_per_node=8)
"""Used where a matrix names no site."""
