"""Many trials in the same real ranks, one after another, and how their training compares."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from training_trials import START, make_trial, weights_apart

from egobench.probes.clock import PhaseClock
from egobench.probes.pulse import Pulse
from egobench.records.measures import MergedStep, StepRecord
from egobench.records.store import TrialPaths, read_lines
from egobench.records.summary import merge_steps
from egobench.records.trial import Trial
from egobench.train.loop import fit
from egobench.train.rank import Rank
from egobench.train.recorder import StepRecorder
from egobench.train.setup import setup
from egobench.train.stages import Stages

GLOBAL_BATCH = 8
NUM_STEPS = 3
PRELOAD = ["torch", "transformers.models.internvl.modeling_internvl", "egobench.train.loop"]


@dataclass(frozen=True)
class Trained:
    """What came of one trial."""

    steps: list[MergedStep]
    weights: dict[str, torch.Tensor]
    """Trained ones only."""
    error: str = ""


def trial_of(folder: Path, axes: Mapping[str, Any], **changes: Any) -> Trial:
    """Make a trial whose global batch is the same for any number of ranks and micro-steps."""
    own = {"strategy": "single", "gpus": 1, "num_accumulation_steps": 1} | dict(axes)
    micro = GLOBAL_BATCH // (int(own["gpus"]) * int(own["num_accumulation_steps"]))
    recipe = {"num_steps": NUM_STEPS, "learning_rate": 1e-3, "max_length": 64, "weight_decay": 0.01}
    defaults: dict[str, Any] = {"model": {"name": "egotiny"}, "recipe": recipe}
    return make_trial(folder, axes={"micro_batch_size": micro} | own, **(defaults | changes))


PATIENCE_S = 300.0
TRIAL_PATIENCE_S = 20.0


def train_all(trials: Sequence[Trial], folder: Path, *, sabotage: Callable[[], None] | None = None) -> list[Trained]:
    """Train trials of one number of ranks in real gloo ranks, and return what came of each.

    `sabotage` is called in each rank first, to break something on purpose.
    """
    num_ranks = trials[0].num_ranks
    assert all(trial.num_ranks == num_ranks for trial in trials)
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context(START)
    multiprocessing.set_forkserver_preload(PRELOAD)
    ranks = [
        context.Process(target=_rank_main, args=(list(trials), folder, rank, sabotage)) for rank in range(num_ranks)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(PATIENCE_S + TRIAL_PATIENCE_S * len(trials))
        if process.is_alive():
            for each in ranks:
                each.kill()
    return [_read(folder / str(index), num_ranks) for index in range(len(trials))]


def _read(folder: Path, num_ranks: int) -> Trained:
    lines = [read_lines(TrialPaths(folder).rank_steps(rank), StepRecord) for rank in range(num_ranks)]
    errors = [
        (folder / f"error.{rank}").read_text() for rank in range(num_ranks) if (folder / f"error.{rank}").exists()
    ]
    said = folder / "weights"
    weights = pickle.loads(said.read_bytes()) if said.exists() else {}
    return Trained(merge_steps(lines), weights, "\n".join(errors) or ("" if said.exists() else "its ranks died"))


def _rank_main(trials: list[Trial], folder: Path, number: int, sabotage: Callable[[], None] | None) -> None:
    torch.set_num_threads(1)
    if sabotage is not None:
        sabotage()
    num_ranks = trials[0].num_ranks
    rank = Rank(number, number, num_ranks, torch.device("cpu"))
    # What torchrun sets, and DeepSpeed reads.
    places = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    os.environ |= {name: str(value) for name, value in places.items()}
    if num_ranks > 1 or any(trial.cell.axes["strategy"] != "single" for trial in trials):
        store = dist.FileStore(str(folder / "rendezvous"), num_ranks)
        dist.init_process_group("gloo", store=store, rank=number, world_size=num_ranks)
    for index, trial in enumerate(trials):
        torch.nn.functional.linear = torch._C._nn.linear  # DeepSpeed puts its own there, for the rest of the process
        here = folder / str(index)
        here.mkdir(exist_ok=True)
        try:
            _train(trial, here, rank)
        except Exception as error:  # noqa: BLE001
            (here / f"error.{number}").write_text(f"rank {number}: {type(error).__name__}: {error}")
            break  # the others wait for this rank in vain
    os._exit(0)


def _train(trial: Trial, folder: Path, rank: Rank) -> None:
    paths = TrialPaths(folder)
    clock = PhaseClock(rank.device)
    work = setup(trial, rank, Stages(Pulse(paths.rank_pulse(rank.rank)), clock), [])
    with StepRecorder(paths.rank_steps(rank.rank), clock, work.memory, rank.device) as recorder:
        fit(work, recorder)
    work.feed.close()
    weights = work.strategy.weights()
    if rank.is_first:
        (folder / ".weights").write_bytes(pickle.dumps({name: one.clone() for name, one in weights.items()}))
        os.replace(folder / ".weights", folder / "weights")


def differences(one: Trained, other: Trained) -> dict[str, float]:
    """Return how far two trainings are apart: losses and norms relative, weights as `weights_apart` has them."""
    if one.error or other.error:
        return {"error": float("inf")}
    assert len(one.steps) == len(other.steps) == NUM_STEPS
    pairs = list(zip(one.steps, other.steps, strict=True))
    return {
        "loss": max(abs(a.loss - b.loss) / abs(a.loss) for a, b in pairs),
        "grad_norm": max(abs(a.grad_norm - b.grad_norm) / abs(a.grad_norm) for a, b in pairs),
        "weights": weights_apart(one.weights, other.weights),
    }
