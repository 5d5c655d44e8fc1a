"""A rank body of a few milliseconds a step, for what is about processes and not about training.

The collectives, the drills, the pulses and the step lines are the real ones; only the model is missing.
"""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from egobench.probes.clock import PhaseClock
from egobench.probes.pulse import Pulse
from egobench.records.measures import StepRecord
from egobench.records.outcome import Phase
from egobench.records.rank import RankSummary
from egobench.records.store import TrialPaths, append_line
from egobench.records.trial import Trial
from egobench.train.drill import Rehearsal
from egobench.train.errors import Diverged
from egobench.train.rank import Rank
from egobench.train.stages import Stages

STEP_S = 0.02


def run(trial: Trial, paths: TrialPaths, rank: Rank, pulse: Pulse) -> RankSummary:
    drill = trial.cell.drill
    rehearsal = Rehearsal(drill, rank, trial.placement.quiet_limit_s) if drill else None
    stages = Stages(pulse, PhaseClock(rank.device), rehearsal)
    model = torch.nn.Linear(4, 4)
    if rehearsal is not None:
        rehearsal.model = model
    stages.outside("load")
    first = time.time()
    for step in range(int(trial.cell.axes["num_steps"])):
        started = time.time()
        stages.step = step
        stages.enter("data")
        stages.enter("forward")
        time.sleep(STEP_S)
        loss = model(torch.ones(1, 4)).sum().detach()
        stages.enter("backward")
        stages.enter("communication")
        total = loss.clone()
        if rank.num_ranks > 1:
            dist.all_reduce(total)
        stages.enter("optimizer")
        append_line(paths.rank_steps(rank.rank), _line(step, started, float(loss), float(total)))
        if not torch.isfinite(loss):
            raise Diverged(step, "loss")
        if not torch.isfinite(total):
            raise Diverged(step, "gradient norm")
    stages.outside("eval")
    return RankSummary(num_parameters=20, num_trainable_parameters=20, first_step_at=first, peak_rss_growth_bytes=1)


PHASES_OF_A_STEP: tuple[Phase, ...] = ("data", "forward", "backward", "communication", "optimizer")


def _line(step: int, started: float, loss: float, norm: float) -> StepRecord:
    took = time.time() - started
    return StepRecord(
        step=step, step_time_s=took, data_s=0, forward_s=took, backward_s=0, communication_s=0, optimizer_s=0,
        loss=loss, grad_norm=norm, learning_rate=0.1, num_samples=1, image_tokens=4, text_tokens=4,
        supervised_tokens=1, padding_tokens=0, peak_allocated_bytes=1, started_at=started,
    )  # fmt: skip
