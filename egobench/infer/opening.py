"""Open a model so that its memory can be watched from the first byte: what measuring and answering begin with."""

from __future__ import annotations

from pathlib import Path

import torch

from egobench.errors import EnvironmentProblem
from egobench.infer.measure import Opened, opened
from egobench.infer.runtimes import missing, runtime_of
from egobench.infer.silent_openvino import silent
from egobench.probes.memory import memory_probe
from egobench.records.inference import InferenceRequest


def open_watched(request: InferenceRequest, threads: int) -> Opened:
    """Open the session, with every library imported before memory is watched.

    Raises:
        EnvironmentProblem: the machine lacks what the runtime needs.
    """
    runtime = runtime_of(request.runtime)
    device = torch.device(request.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem(f"device {request.device} is asked for, but torch finds no GPU")
    if missing(request.runtime) is None:
        for package in runtime.PACKAGES:
            silent(package)
    torch.set_num_threads(threads)
    folder, dtype = Path(request.folder), getattr(torch, request.dtype)
    return opened(lambda: runtime.open_session(folder, device, threads, dtype), memory_probe(device))
