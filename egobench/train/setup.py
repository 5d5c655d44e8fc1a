"""Everything that one rank trains with, put together in one fixed order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from egobench.models.internvl import LoadedModel
from egobench.models.parts import llm_blocks, tower_blocks
from egobench.probes.flops import FlopMeter, flop_meter
from egobench.probes.memory import MemoryProbe, SplitProbe, held_by, memory_probe
from egobench.records.trial import Trial
from egobench.spec import axes as tables
from egobench.train.compile import load_compiler
from egobench.train.feed import Feed
from egobench.train.largest import find_largest
from egobench.train.losses import Loss
from egobench.train.material import Material, build_model, load_data, num_steps, prepare_data
from egobench.train.methods import count_parameters
from egobench.train.precision import Precision
from egobench.train.rank import Rank
from egobench.train.resolve import resolve
from egobench.train.schedule import Schedule
from egobench.train.stages import Stages
from egobench.train.strategies.strategy import Strategy

Facts = list[Callable[[], dict[str, Any]]]
"""What the provenance is to hold, told late and once: to digest a data set is to read all of it."""


def _workload_model(trial: Trial, rank: Rank, parameters: torch.dtype, device: torch.device) -> LoadedModel:
    return build_model(trial, parameters, device)


def _axis_loss(trial: Trial, rank: Rank, material: Material) -> Loss:
    loss: Loss = resolve(tables.LOSSES, trial.cell.axes["loss"], "axes.loss")
    return loss


@dataclass(frozen=True)
class Origin:
    """Where the model that is trained comes from, and what it learns from; a variant may have others."""

    build: Callable[[Trial, Rank, torch.dtype, torch.device], LoadedModel] = _workload_model
    loss: Callable[[Trial, Rank, Material], Loss] = _axis_loss


@dataclass
class Assembled:
    """A model with every axis applied to it: what it takes to run a micro-step and an update of given tensors."""

    trial: Trial
    rank: Rank
    stages: Stages
    model: nn.Module
    """As the strategy wrapped it."""
    strategy: Strategy
    precision: Precision
    optimizer: torch.optim.Optimizer
    loss: Loss
    flops: FlopMeter
    num_parameters: int
    num_trainable_parameters: int


@dataclass
class Work(Assembled):
    """Everything that one rank trains with."""

    material: Material
    schedule: Schedule
    feed: Feed
    memory: MemoryProbe
    split: SplitProbe


def setup(
    trial: Trial, rank: Rank, stages: Stages, facts: Facts, origin: Origin = Origin(), found: int | None = None
) -> Work:
    """Load data and model, and apply the axes to the model in their one order; `facts` are for the provenance.

    `found` is the micro-batch size that an earlier attempt found for `max`: nothing is searched for then.
    """
    torch.manual_seed(trial.seed)
    axes = trial.cell.axes
    stages.outside("load")
    data = load_data(trial)
    load_compiler(axes["compile"])
    memory = memory_probe(rank.device)  # what counts as growth starts here
    strategy, precision = strategy_of(trial, rank, stages)
    loaded = origin.build(trial, rank, precision.parameters, strategy.builds_on())
    material = prepare_data(trial, data, loaded)
    facts.append(material.facts)
    loss = origin.loss(trial, rank, material)
    made = assemble(trial, rank, stages, strategy, precision, loaded.model, loss)
    has_to_search = axes["micro_batch_size"] == tables.MAX and found is None
    work = Work(
        **vars(made),
        material=material,
        schedule=schedule_of(trial),
        feed=material.feed(trial, rank, 1 if has_to_search else found),
        memory=memory,
        split=SplitProbe(rank.device, lambda: held_by(strategy, made.model, made.optimizer)),
    )
    if has_to_search:
        work.feed = material.feed(trial, rank, find_largest(work))
    return work


def strategy_of(trial: Trial, rank: Rank, stages: Stages) -> tuple[Strategy, Precision]:
    """Return the strategy of a trial, which says where the model is built, and the precision, which says in what."""
    axes = trial.cell.axes
    precision: Precision = resolve(tables.PRECISIONS, axes["precision"], "axes.precision")
    strategy: Strategy = resolve(tables.STRATEGIES, axes["strategy"], "axes.strategy")(trial, rank, stages, precision)
    return strategy, precision


def assemble(
    trial: Trial, rank: Rank, stages: Stages, strategy: Strategy, precision: Precision, model: nn.Module, loss: Loss
) -> Assembled:
    """Apply the axes to a model in their one order."""
    axes, recipe = trial.cell.axes, trial.cell.workload.recipe
    # 1. What is trained, first: everything after it may depend on which parameters require gradients.
    model = resolve(tables.METHODS, axes["method"], "axes.method")(model, axes)
    # 2. The head that makes the loss, while the model still is what transformers made of it.
    model = loss.install(model)
    # 3. Recomputation wraps the model's own blocks, so it must see them before compile and strategy do.
    recompute(model, axes)
    # 4. Parameter format, after adapters have been added and before anything takes hold of the tensors.
    model = precision.apply(model)
    meter = flop_meter(model, {**axes, "loss": loss.counts_as or axes["loss"]})
    # 5. Compiled blocks are what the strategy wraps.
    model = resolve(tables.COMPILES, axes["compile"], "axes.compile")(model, axes)
    counted = count_parameters(model)
    # 6. The strategy last: it takes hold of parameters and gradients for good, and has the optimizer built on them.
    build = resolve(tables.OPTIMIZERS, axes["optimizer"], "axes.optimizer")
    model, optimizer = strategy.prepare(model.train(), lambda prepared: build(prepared, recipe))
    return Assembled(
        trial=trial,
        rank=rank,
        stages=stages,
        model=model,
        strategy=strategy,
        precision=strategy.precision,
        optimizer=optimizer,
        loss=loss,
        flops=meter,
        num_parameters=counted[0],
        num_trainable_parameters=counted[1],
    )


def recompute(model: nn.Module, axes: dict[str, Any]) -> None:
    """Apply the checkpointing axes to the blocks of the LLM and of the tower."""
    value = axes["checkpointing"]
    resolve(tables.CHECKPOINTINGS, value, "axes.checkpointing")(llm_blocks(model))
    own = axes["vision_checkpointing"]
    chosen = value if own == tables.SAME else own
    resolve(tables.CHECKPOINTINGS, chosen, "axes.vision_checkpointing")(tower_blocks(model))


def schedule_of(trial: Trial) -> Schedule:
    """Return the learning-rate schedule of a trial."""
    axes, recipe = trial.cell.axes, trial.cell.workload.recipe
    peak = float(axes["learning_rate"] or recipe.learning_rate)
    return Schedule(recipe.schedule, peak, num_steps(trial), recipe.num_warmup_steps)
