"""What a trial ran on and with. By allow-list: nothing here reads the whole environment."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import socket
from collections.abc import Callable
from typing import Any, Final

import torch

from egobench.probes.allocator import ALLOCATOR
from egobench.probes.device import nvml_handle
from egobench.records.code import code_state
from egobench.records.provenance import Gpu, Provenance

PACKAGES: Final = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow", "pydantic", "accelerate", "deepspeed",
    "peft", "bitsandbytes", "torchao", "flash-attn", "triton", "liger-kernel", "nvidia-ml-py",
)  # fmt: skip
"""Packages whose version can change a measurement; those that are not installed are left out."""
SLURM: Final = (
    "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_NAME", "SLURM_JOB_PARTITION",
    "SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_CPUS_PER_TASK",
    "SLURM_GPUS_ON_NODE", "SLURM_CLUSTER_NAME", "SLURM_RESTART_COUNT",
)  # fmt: skip
"""No other variable is recorded."""


def capture(device: torch.device, num_ranks: int, **inputs: Any) -> Provenance:
    """Describe code, packages and this machine; `inputs` are the fields about data and model."""
    code = code_state()
    cuda = device.type == "cuda"
    return Provenance(
        git_sha=code.git_sha,
        dirty_digest=code.dirty_digest,
        code_digest=code.code_digest,
        egobench=code.egobench,
        python=platform.python_version(),
        packages=packages(),
        platform=platform.platform(),
        hostname=socket.gethostname(),
        cpu=cpu_name(),
        num_cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        gpus=gpus() if cuda else (),
        cuda=torch.version.cuda if cuda else None,
        nccl=nccl_version() if cuda and num_ranks > 1 else None,
        topology=topology() if cuda else None,
        allocator=os.environ.get(ALLOCATOR) if cuda else None,
        threads_per_rank=torch.get_num_threads(),
        slurm={name: os.environ[name] for name in SLURM if name in os.environ},
        **inputs,
    )


@functools.cache
def packages() -> dict[str, str]:
    """Return the versions of the packages that matter."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def cpu_name() -> str:
    """Return the CPU's name as /proc/cpuinfo has it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def nccl_version() -> str:
    """Return the version of the NCCL that torch was built with."""
    parts: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return ".".join(map(str, parts))


def gpus() -> tuple[Gpu, ...]:
    """Describe the GPUs that this process sees; NVML adds driver and power limit where it answers."""
    return tuple(_gpu(torch.device("cuda", index)) for index in range(torch.cuda.device_count()))


def _gpu(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    found = nvml_handle(device)
    if found is None:
        return Gpu(name=properties.name, memory_bytes=properties.total_memory)
    nvml, handle = found
    limit = _or_none(nvml, lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle))
    return Gpu(
        name=properties.name,
        memory_bytes=properties.total_memory,
        power_limit_w=limit / 1e3 if limit is not None else None,
        driver=_or_none(nvml, nvml.nvmlSystemGetDriverVersion),
        uuid=_or_none(nvml, lambda: nvml.nvmlDeviceGetUUID(handle)),
    )


def topology() -> str | None:
    """Say how the visible GPUs of this node are linked, e.g. `0-1 NV18, 0-2 SYS`; None for a single one."""
    found = [nvml_handle(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    handles = [item for item in found if item is not None]
    if len(handles) < 2:
        return None
    nvml = handles[0][0]
    pairs = [(a, b) for a in range(len(handles)) for b in range(a + 1, len(handles))]
    return ", ".join(f"{a}-{b} {_link(nvml, handles[a][1], handles[b][1])}" for a, b in pairs)


def _link(nvml: Any, one: Any, other: Any) -> str:
    level = _or_none(nvml, lambda: nvml.nvmlDeviceGetTopologyCommonAncestor(one, other))
    status = _or_none(nvml, lambda: nvml.nvmlDeviceGetP2PStatus(one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK))
    if status == nvml.NVML_P2P_STATUS_OK:
        states = [_or_none(nvml, functools.partial(nvml.nvmlDeviceGetNvLinkState, one, link)) for link in range(18)]
        return f"NV{states.count(1)}"
    names = {0: "INTERNAL", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
    return names.get(level, "unknown")


def _or_none(nvml: Any, question: Callable[[], Any]) -> Any:
    try:
        return question()
    except nvml.NVMLError:
        return None
