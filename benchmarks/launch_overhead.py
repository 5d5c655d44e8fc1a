"""How long from launch to the first step: a trial of a warm allocation, against plain torchrun of the same worker.

    python benchmarks/launch_overhead.py [--pairs 5] [--ranks 1 2] [--json]

Pairs alternate, and every other pair starts with the other side, so that drift of the machine hits both alike.
The clock starts where each way starts its processes and ends at the first step of the slowest rank. Both run
`egobench.worker.rank` and the real training loop; the data are generated, and cached, beforehand.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from egobench.records.measures import StepRecord
from egobench.records.outcome import Outcome
from egobench.records.store import TrialPaths, read_document, read_lines, write_document
from egobench.records.trial import Cell, Placement, Trial
from egobench.spec.axes import AXES
from egobench.spec.workload import DataSpec, EvaluationSpec, ModelSpec, Recipe, Workload


def make_trial(ranks: int, cache: Path) -> Trial:
    axes = {name: axis.default for name, axis in AXES.items()}
    axes |= {"workload": "w", "gpus": ranks, "strategy": "ddp" if ranks > 1 else "single"}
    axes |= {"num_steps": 2, "micro_batch_size": 2, "learning_rate": 1e-3, "max_length": 256, "image_px": 64}
    workload = Workload(
        why="launch overhead",
        model=ModelSpec(name="egotiny", weights="random"),
        data=DataSpec(format="egoworld", domain="home", num_train=16, num_validation=8),
        recipe=Recipe(num_steps=2, learning_rate=1e-3, max_length=256),
        evaluation=EvaluationSpec(num_questions=0),
        image_px=64,
    )
    placement = Placement(site="local", device="cpu", base_folder=str(cache), cache_folder=str(cache))
    cell = Cell(cell_id=f"launch-{ranks}", axes=axes, workload=workload)
    return Trial(sweep="launch", cell=cell, trial=0, placement=placement)


class Warm:
    """A fork server as an allocation has it; trials run one after another in this process."""

    def __init__(self) -> None:
        from egobench.worker.warm import await_server, start_server

        started = time.time()
        start_server()
        from egobench.worker.agent import quiet_elastic_logging

        quiet_elastic_logging()
        await_server()
        self.once_s = time.time() - started
        """Paid once an allocation."""

    def first_step_s(self, paths: TrialPaths) -> float:
        from egobench.worker.trial import run_trial

        outcome: Outcome = run_trial(paths.folder, lambda: None)
        assert outcome.launch_s is not None, outcome.because
        return outcome.launch_s


def torchrun_first_step_s(paths: TrialPaths, ranks: int) -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(port),
        "-m", "egobench.worker.rank", str(paths.trial),
    ]  # fmt: skip
    started = time.time()
    subprocess.run(command, check=True, capture_output=True)
    return max(read_lines(paths.rank_steps(rank), StepRecord)[0].started_at for rank in range(ranks)) - started


def fresh(folder: Path, trial: Trial) -> TrialPaths:
    shutil.rmtree(folder, ignore_errors=True)
    paths = TrialPaths(folder)
    write_document(paths.trial, trial)
    assert read_document(paths.trial, Trial) == trial
    return paths


def measure(ranks: int, pairs: int, warm: Warm, root: Path) -> dict[str, object]:
    trial = make_trial(ranks, root / "cache")
    warm.first_step_s(fresh(root / "warm-up", trial))  # generates the data
    warm_s, cold_s = [], []
    for pair in range(pairs):
        for is_warm in (True, False) if pair % 2 == 0 else (False, True):
            paths = fresh(root / f"{ranks}-{pair}-{is_warm}", trial)
            if is_warm:
                warm_s.append(warm.first_step_s(paths))
            else:
                cold_s.append(torchrun_first_step_s(paths, ranks))
    ratios = [a / b for a, b in zip(warm_s, cold_s, strict=True)]
    return {"ranks": ranks, "allocation_s": warm_s, "torchrun_s": cold_s, "ratio": ratios}


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warm = Warm()
    with tempfile.TemporaryDirectory() as root:
        rows = [measure(ranks, options.pairs, warm, Path(root)) for ranks in options.ranks]
    if options.json:
        print(json.dumps({"schema_version": 1, "once_s": warm.once_s, "rows": rows}, indent=1))
        return
    print(f"fork server, once an allocation: {warm.once_s:.2f} s; below: median [range] of {options.pairs} pairs")
    for row in rows:
        print(f"{row['ranks']} ranks: allocation {shown(row['allocation_s'])} s, ", end="")  # type: ignore[arg-type]
        print(f"torchrun {shown(row['torchrun_s'])} s, ratio {shown(row['ratio'])}")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
