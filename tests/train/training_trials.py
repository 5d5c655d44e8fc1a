"""Trials of a small model, and real ranks to run them in."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from egobench.probes.clock import NullClock
from egobench.probes.pulse import Pulse
from egobench.records.measures import StepRecord
from egobench.records.rank import RankSummary
from egobench.records.store import TrialPaths, read_lines
from egobench.records.trial import Cell, Drill, Placement, Trial
from egobench.spec.axes import AXES
from egobench.spec.workload import Workload
from egobench.train.loop import main, run
from egobench.train.rank import Rank
from egobench.train.setup import Work, setup
from egobench.train.stages import Stages

ROUNDING = 2e-4
"""Most by which logits of egotiny, which reach 17, differ if a CPU adds up in another order; measured 2.5e-5."""
NOISE = 1e-4
"""Most that `weights_apart` says of a few fp32 steps at 1e-3 that add up in another order: measured 2.3e-5 on three
instruction sets, and 1.2e-3 and more where the gradients were not those of the batch."""
START = "forkserver"
"""Ranks must not inherit a parent in which torch has already started threads."""

torch.set_num_threads(1)  # tiny matrices; more threads only fight with whatever else runs on a shared machine


def make_trial(
    folder: Path,
    *,
    axes: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    drill: Drill | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Trial:
    """Make a trial of egotiny; `axes` and the other mappings override what is small and quick."""
    workload = Workload.model_validate(
        {
            "why": "test",
            "model": model or {"name": "egotiny", "weights": "random"},
            "data": {"format": "egoworld", "domain": "home", "num_train": 32, "num_validation": 12} | (data or {}),
            "recipe": {"num_steps": 4, "learning_rate": 1e-3, "max_length": 96} | (recipe or {}),
            "evaluation": {"num_questions": 0} | (evaluation or {}),
            "image_px": 64,
        }
    )
    own = {"workload": "test", "micro_batch_size": 4} | (axes or {})
    resolved = {name: own.get(name, axis.default) for name, axis in AXES.items()}
    resolved |= {name: value for name, value in _from_recipe(workload).items() if resolved[name] is None}
    placement = Placement(
        site="local", device=device, base_folder=str(folder), cache_folder=str(folder / "cache"), quiet_limit_s=0.4
    )
    workload = workload.model_copy(update={"image_px": resolved["image_px"]})  # as the plan does
    cell = Cell(cell_id="test-0", axes=resolved, workload=workload, drill=drill)
    return Trial(sweep="test", cell=cell, trial=seed, placement=placement)


def _from_recipe(workload: Workload) -> dict[str, Any]:
    recipe = workload.recipe
    return {
        "learning_rate": recipe.learning_rate, "num_steps": recipe.num_steps,
        "max_length": recipe.max_length, "image_px": workload.image_px,
    }  # fmt: skip


def one_rank(device: str = "cpu") -> Rank:
    return Rank(0, 0, 1, torch.device(device))


def run_here(trial: Trial, folder: Path) -> tuple[RankSummary, list[StepRecord]]:
    """Run a trial of one rank in this process."""
    paths = TrialPaths(folder)
    summary = run(trial, paths, one_rank(trial.placement.device), Pulse(paths.rank_pulse(0)))
    return summary, read_lines(paths.rank_steps(0), StepRecord)


def run_ranks(trial: Trial, folder: Path, *, timeout_s: float = 170) -> list[tuple[Any, dict[str, torch.Tensor]]]:
    """Run a trial in real gloo ranks; return what each said (a summary or an exception) and its final weights."""
    said = in_ranks(trial.num_ranks, folder, functools.partial(run_keeping_weights, trial), timeout_s=timeout_s)
    return [one if isinstance(one, tuple) else (one, {}) for one in said]


def in_ranks(
    num_ranks: int, folder: Path, body: Callable[[Path, Rank], Any], *, timeout_s: float = 170, device: str = "cpu"
) -> list[Any]:
    """Call `body(folder, rank)` in real ranks; return what each returned, its exception, or None if it died."""
    context = multiprocessing.get_context(START)
    multiprocessing.set_forkserver_preload(
        ["torch", "transformers.models.internvl.modeling_internvl", "egobench.train.loop"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    seats = [(body, folder, rank, num_ranks, device) for rank in range(num_ranks)]
    ranks = [context.Process(target=_rank_main, args=seat) for seat in seats]
    for process in ranks:
        process.start()
    end = time.monotonic() + timeout_s
    for process in ranks:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return [_said(folder / f"said.{rank}") for rank in range(num_ranks)]


def _said(path: Path) -> Any:
    return pickle.loads(path.read_bytes()) if path.exists() else None


def _rank_main(body: Callable[[Path, Rank], Any], folder: Path, rank: int, num_ranks: int, device: str) -> None:
    torch.set_num_threads(1)
    # What torchrun sets, and DeepSpeed reads.
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    os.environ |= {name: str(value) for name, value in places.items()}
    store = dist.FileStore(str(folder / "rendezvous"), num_ranks)
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks)
    place = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    said: Any
    try:
        said = body(folder, Rank(rank, rank, num_ranks, place))
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        said = error
    (folder / f".said.{rank}").write_bytes(pickle.dumps(said))
    os.replace(folder / f".said.{rank}", folder / f"said.{rank}")
    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()
    os._exit(0)


def run_keeping_weights(
    trial: Trial, folder: Path, rank: Rank, run: Callable[..., RankSummary] = run
) -> tuple[RankSummary, dict[str, torch.Tensor]]:
    """Run as `run` does, and return the weights as well."""
    from egobench.train import loop

    kept: list[Work] = []

    def keep(work: Work, *arguments: Any) -> RankSummary:
        kept.append(work)
        return main(work, *arguments)

    loop.main = keep
    try:
        paths = TrialPaths(folder)
        summary = run(trial, paths, rank, Pulse(paths.rank_pulse(rank.rank)))
    finally:
        loop.main = main
    # A collective; where the model is sharded, only the first rank has the whole of it.
    return summary, {name: tensor.clone() for name, tensor in kept[0].strategy.weights().items()}


def setup_here(trial: Trial) -> Work:
    """Set a trial of one rank up in this process, without running it."""
    folder = Path(trial.placement.base_folder)
    return setup(trial, one_rank(), Stages(Pulse(TrialPaths(folder).rank_pulse(0)), NullClock()), [])


def weights_apart(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """Return the root mean square difference of the tensor in which two trained models differ most.

    Not the largest difference: where a gradient is next to nothing Adam makes whole steps of its noise, and at how many
    of a million places depends on the order in which a CPU adds up. A tensor that is trained wrongly differs all over.
    """
    assert set(one) == set(other), set(one) ^ set(other)
    return max(
        (one[name].float() - other[name].float()).square().mean().sqrt().item()
        for name in one
        if not name.endswith("k_proj.bias")  # softmax cancels a key bias: all of its gradient is noise
    )
