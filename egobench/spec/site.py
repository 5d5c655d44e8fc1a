"""A site: where trials run (one YAML in slurm_templates/, or the built-in `local`)."""

from __future__ import annotations

from typing import Literal, cast

from pydantic import Field

from egobench.spec.inference import Runtime
from egobench.spec.strict import Strict


class Container(Strict):
    """The image that the worker runs in."""

    kind: Literal["singularity", "pyxis"]
    """`singularity` (or apptainer): wraps the command; `pyxis`: srun's own options, with enroot underneath."""
    image: str
    """Path of a .sif or .sqsh file, or what the site's registry is called."""
    mounts: tuple[str, ...] = Field(default=(), strict=False)
    """`/host/folder` or `/host/folder:/inside[:ro]`; the runs folder and the matrix's folder always are."""
    overlays: tuple[str, ...] = Field(default=(), strict=False)
    """singularity only: overlay images, each with `:ro` where several jobs use it."""
    options: tuple[str, ...] = Field(default=(), strict=False)
    """Further options, as they are."""


class RuntimeSetup(Strict):
    """What a job that measures variants in one runtime needs beside the site's own, or in its place."""

    modules: tuple[str, ...] = Field(default=(), strict=False)
    """Environment modules to load after the site's."""
    environment: dict[str, str] = {}
    """Variables to export after the site's."""
    setup: tuple[str, ...] = Field(default=(), strict=False)
    """Shell lines after the site's."""
    python: str | None = None
    """In place of the site's."""
    container: Container | None = None
    """In place of the site's."""


class Mail(Strict):
    """Who hears from Slurm, and about what."""

    user: str
    """Address."""
    events: tuple[Literal["begin", "end", "fail", "requeue", "time_limit"], ...] = Field(
        default=("fail",), strict=False
    )
    """What Slurm writes about; one mail for each array of jobs."""


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
    gpu_request: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    """How GPUs are asked for; `none`: not at all (a CPU cluster)."""
    gpu_type: str | None = None
    """Slurm's name of the kind, as in `--gpus-per-node=a100:4`."""
    network_gb_per_s: float | None = Field(default=None, gt=0)
    """All network cards of a node together, one direction, GB/s of 1e9 bytes (InfiniBand HDR: 25 a card); only
    predictions read it. Default: not known, and no time is predicted for trials over several nodes."""
    max_nodes: int = Field(default=1, ge=1)
    """Nodes of one trial at most."""
    max_gpus: int | None = Field(default=None, ge=1)
    """GPUs in use at once over all jobs of a sweep; default: no cap."""
    threads_per_rank: int | None = Field(default=None, ge=1)
    """CPU threads per rank; default: the cores are shared out evenly."""
    binding: Literal["none", "spread"] = "none"
    """`spread`: each rank keeps to its own cores, those nearest its GPU; recorded with the trial."""
    partition: str | None = None
    """`--partition`; default: the cluster's own."""
    account: str | None = None
    """`--account`, where the cluster wants one."""
    qos: str | None = None
    """`--qos`, where the cluster wants one."""
    constraint: str | None = None
    """`--constraint`: features that nodes must have."""
    cpus_per_gpu: int | None = Field(default=None, ge=1)
    """CPU cores asked for with each GPU (on a CPU site: with each rank)."""
    memory_gib_per_node: int | None = Field(default=None, ge=1)
    """Host memory of a whole node; a job of fewer GPUs asks for its share."""
    modules: tuple[str, ...] = Field(default=(), strict=False)
    """Environment modules to load."""
    environment: dict[str, str] = {}
    """Variables to export before the worker starts."""
    setup: tuple[str, ...] = Field(default=(), strict=False)
    """Shell lines run on the first node, in the sweep's folder, before the worker starts."""
    python: str | None = None
    """Python that runs the worker, on the nodes or in the container; default: the one that runs `egobench`."""
    container: Container | None = None
    """Image that the worker runs in."""
    runtimes: dict[Runtime, RuntimeSetup] = {}
    """Runtime of variants -> what its jobs need; they are jobs of their own then."""
    scratch: str | None = None
    """Node-local folder for temporary files; a shell expression such as `$SLURM_TMPDIR` is allowed."""
    mail: Mail | None = None
    """Who hears from Slurm."""
    sbatch: dict[str, str | int | bool] = {}
    """Further options of sbatch: name without dashes -> value; true for one without a value."""
    srun: tuple[str, ...] = Field(default=(), strict=False)
    """Further options of srun, as they are."""
    requeue: bool = True
    """Slurm may start an allocation again after a node failure, preemption or its time limit."""
    signal_before_end_s: int = Field(default=90, ge=10)
    """How long before its time limit an allocation is warned."""
    max_array_size: int = Field(default=1000, ge=1)
    """MaxArraySize of the cluster, less one (`scontrol show config`)."""
    max_submit_jobs: int = Field(default=500, ge=1)
    """Jobs of one user in the queue at most (MaxSubmitJobs of account or QOS)."""
    poll_every_s: float = Field(default=10, gt=0)
    """Slurm is asked this often at most, by all of a sweep's commands together."""
    time_limit_min: int = Field(default=120, ge=1)
    """Longest allocation."""
    pack_min: int = Field(default=60, ge=1)
    """Expected length that trials are packed up to; short jobs start sooner, long ones waste less start-up."""
    max_trials_per_job: int | None = Field(default=None, ge=1)
    """Trials packed into one job at most; default: as many as fit."""
    expected_trial_min: float = Field(default=10, gt=0)
    """How long a trial is expected to take, until finished ones of its cell tell, where nothing is predicted."""
    trial_time_limit_s: float = Field(default=3600, gt=0)
    """A trial that runs longer ends as `timeout`."""
    quiet_limit_s: float = Field(default=20, gt=0)
    """A trial whose ranks neither progress nor use CPU or disk for this long ends as `hang`."""
    stall_limit_s: float = Field(default=1800, gt=0)
    """A trial that is busy but makes no progress for this long ends as `hang`."""
    cost_per_gpu_hour: float | None = Field(default=None, ge=0)
    """For the plan's estimates."""

    def set_up_for(self, runtime: str) -> Site:
        """Return the site as jobs of a runtime see it; empty: the site itself."""
        own = self.runtimes.get(cast("Runtime", runtime))
        if own is None:
            return self
        told = {"modules": (*self.modules, *own.modules), "setup": (*self.setup, *own.setup)}
        kept = {"python": own.python or self.python, "container": own.container or self.container}
        return self.model_copy(update={**told, **kept, "environment": {**self.environment, **own.environment}})


LOCAL = Site(why="This machine, CPU ranks.", launcher="local", device="cpu", gpus_per_node=8)
"""Used where a matrix names no site."""
