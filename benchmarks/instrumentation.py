"""What does measuring cost? The training loop of egotiny with and without its probes, in interleaved blocks.

`python benchmarks/instrumentation.py [--blocks 40] [--steps 20]` prints the ratio of the times with its interval.
Four blocks run back to back as ABBA (the next four as BAAB), so that neither drift of the machine nor a block's
place in the row counts for one side; the sample is the ratio of their sums. CPU time of the process is the
default: on a shared machine the wall clock measures the neighbours.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from egobench.probes.clock import NullClock, PhaseClock
from egobench.probes.pulse import Pulse
from egobench.records.store import TrialPaths
from egobench.records.trial import Cell, Placement, Trial
from egobench.spec.axes import AXES
from egobench.spec.workload import Workload
from egobench.train.loop import fit
from egobench.train.rank import Rank
from egobench.train.recorder import StepRecorder
from egobench.train.setup import Work, setup
from egobench.train.stages import Stages


class Silence:
    """A pulse that nobody feels: part of what is being measured is marking it."""

    def mark(self, phase: str, step: int) -> None:
        """Do nothing."""


def trial_of(folder: Path, num_steps: int, micro_batch_size: int) -> Trial:
    workload = Workload.model_validate(
        {
            "why": "what measuring costs",
            "model": {"name": "egotiny", "weights": "random"},
            "data": {"format": "egoworld", "domain": "home", "num_train": 256, "num_validation": 8},
            "recipe": {"num_steps": num_steps, "learning_rate": 1e-4, "max_length": 96},
            "evaluation": {"num_questions": 0},
            "image_px": 64,
        }
    )
    axes = {name: axis.default for name, axis in AXES.items()}
    axes |= {"workload": "x", "micro_batch_size": micro_batch_size, "padding": "max"}
    placement = Placement(site="local", device="cpu", base_folder=str(folder), cache_folder=str(folder / "cache"))
    return Trial(sweep="x", cell=Cell(cell_id="x", axes=axes, workload=workload), trial=0, placement=placement)


def block(work: Work, folder: Path, is_measured: bool, timer: Callable[[], float]) -> float:
    """Run one block of steps and return the time it took."""
    paths = TrialPaths(folder)
    work.feed = work.material.feed(work.trial, work.rank)
    began = timer()
    if is_measured:
        clock = PhaseClock(work.rank.device)
        clock.watch = work.split.enter
        work.stages = Stages(Pulse(paths.rank_pulse(0)), clock)
        with StepRecorder(paths.rank_steps(0), clock, work.memory, work.rank.device) as recorder:
            fit(work, recorder)
    else:
        work.stages = Stages(Silence(), NullClock())
        fit(work, None)
    return timer() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=40, help="groups of four blocks")
    parser.add_argument("--steps", type=int, default=20, help="steps per block")
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--wall", action="store_true", help="wall clock instead of CPU time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    timer = time.perf_counter if options.wall else time.process_time
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trial = trial_of(folder, options.steps, options.micro_batch_size)
        work = setup(trial, Rank(0, 0, 1, torch.device("cpu")), Stages(Silence(), NullClock()), [])
        work.schedule = replace(work.schedule, shape="constant", peak=0.0)  # every block does the same work
        for is_measured in (False, True):
            block(work, folder, is_measured, timer)
        ratios, bare = [], []
        for index in range(options.blocks):
            seconds = {False: 0.0, True: 0.0}
            first = index % 2 == 0
            for is_measured in (first, not first, not first, first):
                seconds[is_measured] += block(work, folder, is_measured, timer)
            ratios.append(seconds[True] / seconds[False])
            bare.append(seconds[False] / 2)
    low, median, high = median_interval(ratios)
    step_ms = 1e3 * statistics.median(bare) / options.steps
    print(f"{len(ratios)} groups of 4 x {options.steps} steps, {step_ms:.2f} ms a step without probes")
    print(f"with / without probes: {median:.4f} (median; 95 %: {low:.4f} .. {high:.4f})")


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Return the median between the order statistics that enclose it at 95 %; a neighbour's burst hardly moves it."""
    ordered, size = sorted(values), len(values)
    reach = 0.98 * size**0.5  # 1.96 binomial standard deviations of the rank of the median
    low, high = max(0, math.floor(size / 2 - reach)), min(size - 1, math.ceil(size / 2 + reach) - 1)
    return ordered[low], statistics.median(ordered), ordered[high]


if __name__ == "__main__":
    main()
