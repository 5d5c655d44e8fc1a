"""Workloads, sites and cells to be predicted about."""

from __future__ import annotations

from typing import Any

from egobench.plan.blocks import resolve
from egobench.spec.site import Site
from egobench.spec.workload import Workload

WORKLOAD: dict[str, Any] = {
    "why": "test",
    "model": {"name": "internvl3-8b", "weights": "random"},
    "data": {"format": "egobench", "path": "x.jsonl"},
    "recipe": {"num_steps": 300, "learning_rate": 1.0e-5, "max_length": 512},
    "image_px": 448,
    "defaults": {"micro_batch_size": 2},
}
"""Of InternVL3-8B, as benchmarks/internvl3-8b-egoqa.yaml has it."""


def workload(**changes: Any) -> Workload:
    """Return a workload of InternVL3-8B, as benchmarks/internvl3-8b-egoqa.yaml has it."""
    return Workload.model_validate(WORKLOAD | changes)


def site(**changes: Any) -> Site:
    """Return a site of eight A100-80GB."""
    given = {"why": "test", "launcher": "slurm", "device": "cuda", "gpu": "A100-80GB SXM", "gpus_per_node": 8}
    return Site.model_validate(given | changes)


def axes(found: Workload, **changes: Any) -> dict[str, Any]:
    """Return every axis of a cell, after defaults."""
    return resolve(changes, "w", found)
