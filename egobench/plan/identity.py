"""What makes a cell that cell: a readable slug and a hash of everything that is measured.

The hash is the first 12 hex digits of the SHA-256 of

    {"axes": {every axis: its value}, "drill": null or the drill, "workload": SHA-256 of the workload}

as JSON with sorted keys and no spaces; that of a variant has also "variant": the settings of it and of those that it is
made from. The workload counts without its prose and without the numbers
that are axes (their resolved values stand under `axes`); the site and the matrix do not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from egobench.records.trial import Drill
from egobench.spec.variants import Variant
from egobench.spec.workload import Workload

HASH_DIGITS: Final = 12
SLUG_AXES: Final = ("workload", "strategy", "gpus", "precision", "attention", "checkpointing", "method", "variant")
"""A fixed list: the slug of a cell must not depend on what else is in its matrix."""
_SHORT: Final = {
    ("attention", "flash_attention_2"): "fa2",
    ("attention", "flash_attention_3"): "fa3",
    ("checkpointing", "none"): "nockpt",
    ("checkpointing", "full"): "ckpt",
    ("checkpointing", "selective"): "selckpt",
}


def canonical(value: Any) -> str:
    """Return JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def workload_digest(workload: Workload) -> str:
    """Return the SHA-256 of what is measured of a workload beyond its axes."""
    identity = workload.identity()
    del identity["image_px"]
    for name in ("learning_rate", "num_steps", "max_length"):
        del identity["recipe"][name]
    return hashlib.sha256(canonical(identity).encode()).hexdigest()


def head_of_identity() -> str:
    """Return what stands before the axes in a cell's canonical JSON."""
    return '{"axes":{'


def tail_of_identity(drill: Drill | None, digest: str, line: Sequence[Variant] = ()) -> str:
    """Return what stands after the axes in a cell's canonical JSON; `line`: of a variant, the oldest ancestor first."""
    rehearsed = None if drill is None else drill.model_dump(mode="json", include=set(Drill.model_fields))
    made = {"variant": [one.identity() for one in line]} if line else {}
    return "}," + canonical({"drill": rehearsed, **made, "workload": digest})[1:]


def slug_word(axis: str, value: object) -> str:
    """Return the word of a slug for one axis."""
    return f"{value}gpu" if axis == "gpus" else _SHORT.get((axis, str(value)), str(value))


def cell_id_of(
    axes: Mapping[str, Any], workload: Workload, drill: Drill | None = None, line: Sequence[Variant] = ()
) -> str:
    """Return the id of one cell, the slow and plain way; `expand.py` makes the same ids in bulk."""
    text = head_of_identity() + canonical(dict(axes))[1:-1] + tail_of_identity(drill, workload_digest(workload), line)
    slug = "-".join(slug_word(axis, axes[axis]) for axis in SLUG_AXES if axis in axes)
    return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]}"
