"""How long the samples of a workload are in its model's tokens: the `lengths:` that predictions read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egobench.data.source import load
from egobench.spec.dims import NAMED
from egobench.spec.workload import Workload


def lengths_of(workload: Workload, folder: Path) -> dict[str, Any]:
    """Encode the training samples as training does, and sum up their lengths.

    Args:
        workload: As written.
        folder: Where its relative paths start from.
    """
    from egobench.models.internvl import EGOTINY, tokenizer_of
    from egobench.models.prompt import encode_all

    spec = workload.data.model_dump()
    if spec["path"] is not None:
        spec["path"] = str(folder / Path(spec["path"]).expanduser())
    model = workload.model
    place = EGOTINY if model.path is None else folder / Path(model.path).expanduser()
    samples = load(spec, "train", image_px=workload.image_px).samples
    tokens = _image_tokens(workload, place)
    found = encode_all(samples, tokenizer_of(place), tokens, workload.recipe.max_length)
    lengths = [len(one.input_ids) for one in found.encoded]
    return {
        **summed(lengths, [one.num_supervised for one in found.encoded]),
        "num_samples": len(lengths),
        "num_too_long": found.num_too_long,
        "num_cut": found.num_truncated,
    }


def summed(lengths: Sequence[int], supervised: Sequence[int]) -> dict[str, Any]:
    """Return the fields of `lengths:`."""
    if not lengths:
        return {"mean": 0.0, "p90": 0.0, "longest": 0, "supervised": 0.0}
    return {
        "mean": round(float(np.mean(lengths)), 1),
        "p90": round(float(np.percentile(lengths, 90)), 1),
        "longest": max(lengths),
        "supervised": round(float(np.mean(supervised)), 1),
    }


def _image_tokens(workload: Workload, place: Path) -> int:
    """Return the tokens that one image becomes."""
    name = workload.model.name
    if workload.model.path is None and name in NAMED:
        return (workload.image_px // NAMED[name].vision.patch_px // 2) ** 2
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    vision = config["vision_config"]
    sides = [size[0] if isinstance(size, list) else size for size in (vision["image_size"], vision["patch_size"])]
    return int((sides[0] // sides[1] * float(config["downsample_ratio"])) ** 2)
