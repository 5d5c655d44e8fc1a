"""The fork server: one process that has imported everything, from which every rank of the allocation is forked."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from typing import Final

from egobench.probes.allocator import state_allocator

PRELOAD: Final = (
    "egobench.models",
    "torch",
    "torch.distributed",
    "transformers",
    "transformers.models.internvl.modeling_internvl",
    "transformers.models.qwen2.modeling_qwen2",
    "egobench.train.loop",
)
"""Imported once. None of them may touch CUDA: a forked process cannot use a CUDA that its parent initialised."""


def start_server(preload: tuple[str, ...] = PRELOAD) -> None:
    """Start the fork server; it imports while the caller goes on with its own imports."""
    # transformers asks at import whether there is a GPU, where flash-attn is installed: torch must ask NVML, because a
    # forked process cannot use a CUDA that its parent initialised. Source: torch.cuda.is_available.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    state_allocator()
    multiprocessing.set_forkserver_preload([*preload, "egobench.worker.rank", "egobench.worker.server"])
    forkserver.ensure_running()


def await_server() -> None:
    """Return when the fork server has imported everything and answers."""
    probe = multiprocessing.get_context("forkserver").Process(target=_nothing)
    probe.start()
    probe.join()


def _nothing() -> None:
    pass
