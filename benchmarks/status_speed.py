"""How long `egobench status` takes for a sweep of 5,000 trials, against the least that could be done.

    python benchmarks/status_speed.py [--cells 1667] [--trials 3] [--repeats 5]

The sweep is made up in a temporary folder: two thirds of the trials have ended, one of thirty of them badly; 200
allocations, 40 of which run a trial each, the others over or waiting. The floor, measured in the same run, starts
Python, opens the same files and throws their bytes away. The ways take turns, and the quickest of each counts. On a
busy machine wall time says little: where a child got less than 80 % of a core, its CPU time is held against the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cost import Cost, cost_of

from egobench.records.allocation import Ended
from egobench.records.store import SweepPaths, read_document
from egobench.records.sweep import Sweep
from egobench.records.usage import Span
from tests.launch import made_up

MOST_SECONDS = 2.0
NUM_ALLOCATIONS = 200
NUM_ACTIVE = 40
FLOOR = """
import pathlib, sys
for path in pathlib.Path(sys.argv[1]).rglob("*"):
    if path.suffix == ".json" and path.name != "trial.json":
        path.read_bytes()
"""


def make_sweep(folder: Path, cells: int, trials: int) -> None:
    """Write the files of a sweep that is two thirds over, its allocations in the order of the plan."""
    paths = made_up.write_sweep(folder, cells, trials)
    sweep = read_document(paths.sweep, Sweep)
    assert sweep is not None
    order = [(cell.cell_id, trial) for trial in range(trials) for cell in sweep.cells]
    size = -(-len(order) // NUM_ALLOCATIONS)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    num_over = len(parts) * 2 // 3
    for number, part in enumerate(parts, 1):
        write_part(paths, number, part, is_over=number <= num_over, is_active=0 < number - num_over <= NUM_ACTIVE)
    states = ["COMPLETED"] * num_over + ["RUNNING"] * NUM_ACTIVE + ["PENDING"] * (len(parts) - num_over - NUM_ACTIVE)
    jobs = [made_up.job_state(number, state, reason="Priority") for number, state in enumerate(states, 1)]
    made_up.write_queue(paths, *jobs, asked_at=time.time())


def write_part(paths: SweepPaths, number: int, part: list[tuple[str, int]], is_over: bool, is_active: bool) -> None:
    """Write an allocation and what its trials left."""
    ended = Ended(exit_code=0, at=made_up.NOW) if is_over else None
    span = Span(start=0, began_at=made_up.NOW - 3600, measured_s=2000, warmup_s=300, startup_s=900, idle_s=400)
    began = [made_up.NOW - 3600] if is_over or is_active else []
    made_up.write_allocation(paths, number, part, began_at=began, spans=[span] if began else [], ended=ended)
    for cell_id, trial in part:
        made_up.write(paths.trial(cell_id, trial).trial, ended or Ended(exit_code=0, at=0))  # never read here
        if is_over:
            bad = (int(cell_id[-6:], 16) + trial) % 30 == 0
            made_up.write_outcome(paths, cell_id, trial, "crash" if bad else "ok")
            made_up.write_claim(paths, cell_id, trial, number)
    if is_active:
        made_up.write_claim(paths, *part[0], number)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=1667)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        folder = Path(runs) / "large"
        make_sweep(folder, options.cells, options.trials)
        program = [sys.executable, "-m", "egobench", "status", str(folder)]
        ways = {"floor": [sys.executable, "-c", FLOOR, str(folder)], "text": program, "json": [*program, "--json"]}
        costs: dict[str, list[Cost]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, arguments in ways.items():
                costs[name].append(cost_of(arguments))
    best = {name: min(found, key=lambda cost: cost.time_s) for name, found in costs.items()}
    document = {
        "trials": options.cells * options.trials,
        **{name: cost._asdict() for name, cost in best.items()},
        "median_wall_s": {name: statistics.median(cost.wall_s for cost in found) for name, found in costs.items()},
        "text_over_floor": round(best["text"].cpu_s / best["floor"].cpu_s, 2),
        "json_over_floor": round(best["json"].cpu_s / best["floor"].cpu_s, 2),
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(document, indent=1))
    slow = [name for name in ("text", "json") if best[name].time_s > MOST_SECONDS]
    if slow:
        print(f"over {MOST_SECONDS} s: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
