"""Trial folders for tests of the worker's mechanics."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egobench.records.allocation import Allocation, AllocationPaths, TrialRef
from egobench.records.outcome import Outcome
from egobench.records.store import SweepPaths, TrialPaths, write_document
from egobench.records.trial import Cell, Drill, Placement, Trial
from egobench.spec.axes import AXES
from egobench.spec.workload import DataSpec, ModelSpec, Recipe, Workload

BODY = "tests.worker.standin:run"
ROOT = Path(__file__).parent.parent.parent


def make_trial(cell_id: str, drill: Drill | None = None, ranks: int = 2, steps: int = 6, **limits: Any) -> Trial:
    axes = {name: axis.default for name, axis in AXES.items()}
    axes |= {"workload": "w", "gpus": ranks, "strategy": "ddp" if ranks > 1 else "single", "num_steps": steps}
    workload = Workload(
        why="a test",
        model=ModelSpec(name="egotiny", weights="random"),
        data=DataSpec(format="egoworld", domain="home", num_train=8, num_validation=8),
        recipe=Recipe(num_steps=steps, learning_rate=1e-3),
        image_px=64,
    )
    # Short only where it is waited for: a loaded machine is quiet now and then.
    quiet_limit_s = 2.0 if drill is not None and drill.kind in ("hang", "slow") else 10.0
    limits = {"trial_time_limit_s": 60, "quiet_limit_s": quiet_limit_s} | limits
    placement = Placement(site="local", device="cpu", base_folder="/", cache_folder="/", **limits)
    cell = Cell(cell_id=cell_id, axes=axes, workload=workload, drill=drill)
    return Trial(sweep="s", cell=cell, trial=0, placement=placement)


def make_allocation(
    folder: Path, trials: list[Trial], parents: Mapping[str, str] | None = None, **more: Any
) -> AllocationPaths:
    """`parents`: cell -> the cell that it needs; `more`: fields of the allocation."""
    sweep = SweepPaths(folder)
    for trial in trials:
        write_document(sweep.trial(trial.cell.cell_id, 0).trial, trial)
    paths = AllocationPaths(sweep.allocations / "1")
    ids = [trial.cell.cell_id for trial in trials]
    refs = tuple(TrialRef(cell_id=cell_id, trial=0, parent=(parents or {}).get(cell_id)) for cell_id in ids)
    write_document(paths.allocation, Allocation(sweep="s", trials=refs, **more))
    return paths


def start_worker(document: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "egobench.worker", str(document), "--body", BODY, *options]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def outcome_of(folder: Path, cell_id: str) -> Outcome:
    text = TrialPaths(folder / cell_id / "0").outcome.read_text()
    assert json.loads(text)["schema_version"] == 1
    return Outcome.model_validate_json(text)


def workers_below(folder: Path) -> list[int]:
    """Processes whose command line or open files name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                targets = [str(link.readlink()) for link in (entry / "fd").iterdir()]
            except OSError:
                continue
            if any(str(folder) in target for target in targets):
                found.append(int(entry.name))
    return found
