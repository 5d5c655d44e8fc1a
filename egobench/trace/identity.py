"""What a trace depends on: two cells that share all of it are traced once, and never again by the same code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import egobench
from egobench.records.code import digest_files
from egobench.records.trace import TraceRequest
from egobench.trace.support import as_traced

NO_MATTER: Final = (
    "workload", "padding", "micro_batch_size", "learning_rate", "num_steps", "image_px", "max_length", "lora_alpha",
)  # fmt: skip
"""Axes that change numbers, or nothing but the batch, which is named beside them."""
ONLY_WITH: Final = {
    "sharding": ("strategy", ("fsdp",)),
    "projector": ("method", ("lora", "dora", "qlora", "freeze", "last_blocks")),
    "lora_rank": ("method", ("lora", "dora", "qlora")),
    "lora_targets": ("method", ("lora", "dora", "qlora")),
}
"""Axis -> the values of another one without which it says nothing."""
SAME_FOR_ANY_NUMBER: Final = ("ddp", "single")
"""Strategies whose ranks hold the same whatever their number."""
ROOMS: Final = ("train", "models", "trace", "probes/memory.py", "data/batches.py")
PACKAGES: Final = ("torch", "transformers", "peft", "deepspeed", "bitsandbytes", "torchao")


def digest_of(request: TraceRequest) -> str:
    """Return the name of what comes of a request."""
    return hashlib.sha256(json.dumps(about(request), sort_keys=True).encode()).hexdigest()[:24]


def about(request: TraceRequest) -> dict[str, Any]:
    """Return everything that a trace depends on."""
    axes, _ = as_traced(request.cell.axes, request.imitates)
    axes["vision_checkpointing"] = {"same": axes["checkpointing"]}.get(
        axes["vision_checkpointing"], axes["vision_checkpointing"]
    )
    for name in NO_MATTER:
        axes.pop(name, None)
    for name, (other, values) in ONLY_WITH.items():
        if axes[other] not in values:
            del axes[name]
    if axes["strategy"] in SAME_FOR_ANY_NUMBER:
        del axes["gpus"]
    workload, batch = request.cell.workload, request.batch
    return {
        "axes": axes,
        "model": workload.model.model_dump(mode="json"),
        "image_px": workload.image_px,
        "num_nodes": request.num_nodes if axes.get("sharding") == "hybrid_shard" else None,
        # Where rows are padded, only their width is seen.
        "batch": batch.model_dump(mode="json", exclude=None if batch.is_packed else {"lengths"}),
        "num_blocks": request.num_blocks,
        "imitates": request.imitates,
        "further": request.further,
        "packages": dict(_versions()),
        "code": _code(),
    }


def _versions() -> Iterator[tuple[str, str | None]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, None


def _code() -> str:
    root = Path(egobench.__file__).parent
    found = [path for room in ROOMS for path in ((root / room).rglob("*.py") if "." not in room else [root / room])]
    return digest_files(root, found)
