"""Make a matrix of one GPU small enough to walk through on this machine's CPU: same cells, tiny models.

    python benchmarks/rehearse.py MATRIX.yaml FOLDER

Every workload becomes egotiny with a few steps and questions, whatever it was; the site becomes `local`. What only a
GPU can run is dropped by the plan, as anywhere.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

STEPS = 6


def small(workload: dict[str, Any]) -> dict[str, Any]:
    """Return a workload of the same kind that a CPU runs in seconds."""
    recipe = {**workload["recipe"], "num_steps": STEPS, "max_length": 96, "num_warmup_steps": 0}
    evaluation = workload.get("evaluation", {})
    if evaluation.get("num_questions") != 0:
        evaluation = {**evaluation, "num_questions": 8}
    defaults = dict(workload.get("defaults", {}))
    if defaults.get("micro_batch_size", 8) != "max":
        defaults["micro_batch_size"] = 4
    return {
        **workload, "model": {"name": "egotiny"}, "recipe": recipe, "evaluation": evaluation, "image_px": 64,
        "data": {"format": "egoworld", "domain": "workshop", "num_train": 64, "num_validation": 16},
        "defaults": defaults,
    }  # fmt: skip


def rehearsal(path: Path) -> dict[str, Any]:
    """Return the matrix at `path`, made small."""
    matrix: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    inline = matrix.get("workloads", {})
    named = set(matrix.get("axes", {}).get("workload", [])) - set(inline)
    for name in named:
        inline[name] = yaml.safe_load((path.parent / f"{name}.yaml").read_text(encoding="utf-8"))
    matrix |= {"site": "local", "trials": 1, "workloads": {name: small(one) for name, one in inline.items()}}
    for axes in (matrix.get("axes", {}), *matrix.get("include", [])):
        for name in ("micro_batch_size", "num_steps"):
            if axes.get(name) not in (None, "max"):
                axes[name] = [4] if isinstance(axes[name], list) else 4
    if matrix.get("profile"):
        matrix["profile"]["steps"] = [STEPS - 2]
    return matrix


def main() -> None:
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    target.write_text(yaml.safe_dump(rehearsal(path), sort_keys=False), encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
