"""One trial, read from top to bottom: run -> setup -> main -> fit. The same loop for every point of a matrix."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from egobench.errors import EgobenchError
from egobench.evaluate.ask import evaluate
from egobench.probes import provenance
from egobench.probes.clock import PhaseClock
from egobench.probes.device import GpuSampler, sampler_of
from egobench.probes.memory import MemoryProbe, memory_probe
from egobench.records.measures import Answers, StepRecord
from egobench.records.rank import RankSummary
from egobench.records.store import TrialPaths, write_document
from egobench.records.summary import merge_steps
from egobench.records.trial import Trial
from egobench.spec import axes as tables
from egobench.train.drill import Rehearsal
from egobench.train.feed import Feed
from egobench.train.material import Material, build_model, load_data, num_steps, prepare_data
from egobench.train.methods import count_parameters
from egobench.train.optimizers import set_learning_rate
from egobench.train.precision import Precision
from egobench.train.rank import Rank
from egobench.train.recorder import Scalars, StepRecorder
from egobench.train.resolve import resolve
from egobench.train.schedule import Schedule
from egobench.train.stages import Pulse, Stages
from egobench.train.strategies.strategy import Strategy

Facts = list[Callable[[], dict[str, Any]]]
"""What the provenance is to hold, told late and once: to digest a data set is to read all of it."""


@dataclass
class Work:
    """Everything that one rank trains with."""

    trial: Trial
    rank: Rank
    stages: Stages
    material: Material
    model: nn.Module
    """As the strategy wrapped it."""
    strategy: Strategy
    precision: Precision
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    loss: Callable[..., torch.Tensor]
    feed: Feed
    memory: MemoryProbe
    num_parameters: int
    num_trainable_parameters: int


def run(trial: Trial, paths: TrialPaths, rank: Rank, pulse: Pulse) -> RankSummary:
    """Run one rank of a trial from its data to its answers.

    The caller has set up process group, threads and device. Exceptions (also torch's own out-of-memory errors)
    pass through; the step lines that were finished are on disk by then.

    Raises:
        Diverged: a loss or gradient norm is not finite.
    """
    drill = trial.cell.drill
    rehearsal = Rehearsal(drill, rank, trial.placement.quiet_limit_s) if drill is not None else None
    clock = PhaseClock(rank.device)
    facts: Facts = []
    try:
        work = setup(trial, rank, Stages(pulse, clock, rehearsal), facts)
        if rehearsal is not None:
            rehearsal.model = work.model
        return main(work, paths, clock, facts)
    except BaseException:
        # A failure is a result too, and must be as easy to place as any other; but its own error is the one to tell.
        with contextlib.suppress(RuntimeError, OSError, EgobenchError):
            leave_provenance(paths, rank, facts)
        raise


def setup(trial: Trial, rank: Rank, stages: Stages, facts: Facts) -> Work:
    """Load data and model, and apply the axes to the model in their one order; `facts` are for the provenance."""
    torch.manual_seed(trial.seed)
    axes, recipe = trial.cell.axes, trial.cell.workload.recipe
    stages.outside("load")
    data = load_data(trial)
    memory = memory_probe(rank.device)  # what counts as growth starts here
    precision: Precision = resolve(tables.PRECISIONS, axes["precision"], "axes.precision")
    loaded = build_model(trial, precision.parameters, rank.device)
    material = prepare_data(trial, data, loaded)
    facts.append(material.facts)

    model = loaded.model
    # 1. What is trained, first: everything after it may depend on which parameters require gradients.
    model = resolve(tables.METHODS, axes["method"], "axes.method")(model)
    # 2. Recomputation wraps the model's own blocks, so it must see them before compile and strategy do.
    model = resolve(tables.CHECKPOINTINGS, axes["checkpointing"], "axes.checkpointing")(model)
    # 3. Parameter format, after adapters have been added and before anything takes hold of the tensors.
    model = precision.apply(model)
    # 4. Compiled blocks are what the strategy wraps.
    model = resolve(tables.COMPILES, axes["compile"], "axes.compile")(model)
    counted = count_parameters(model)
    # 5. The strategy last: it takes hold of parameters and gradients for good.
    strategy: Strategy = resolve(tables.STRATEGIES, axes["strategy"], "axes.strategy")(rank, stages)
    model = strategy.prepare(model.train())

    # 6. The optimizer sees the parameters that the strategy left.
    optimizer = resolve(tables.OPTIMIZERS, axes["optimizer"], "axes.optimizer")(model, recipe)
    return Work(
        trial=trial,
        rank=rank,
        stages=stages,
        material=material,
        model=model,
        strategy=strategy,
        precision=precision,
        optimizer=optimizer,
        schedule=schedule_of(trial),
        loss=resolve(tables.LOSSES, axes["loss"], "axes.loss"),
        feed=material.feed(trial, rank),
        memory=memory,
        num_parameters=counted[0],
        num_trainable_parameters=counted[1],
    )


def schedule_of(trial: Trial) -> Schedule:
    """Return the learning-rate schedule of a trial."""
    axes, recipe = trial.cell.axes, trial.cell.workload.recipe
    peak = float(axes["learning_rate"] or recipe.learning_rate)
    return Schedule(recipe.schedule, peak, num_steps(trial), recipe.num_warmup_steps)


def main(work: Work, paths: TrialPaths, clock: PhaseClock, facts: Facts) -> RankSummary:
    """Ask, train, ask again, and say what the step lines do not."""
    spec = work.trial.cell.workload.evaluation
    before = ask(work, paths, "before") if spec.before else None
    work.memory.reset()
    sampler = sampler_of(work.rank.device)
    try:
        with StepRecorder(paths.rank_steps(work.rank.rank), clock, work.memory, work.rank.device) as recorder:
            fit(work, recorder)
    finally:
        work.feed.close()
        if sampler is not None:
            sampler.stop()
    summary = summarise_rank(work, recorder.records, sampler)
    leave_provenance(paths, work.rank, facts)  # only now: it would have delayed the first step
    after = ask(work, paths, "after")
    work.stages.outside("done")
    seconds = {
        "began_at": work.stages.began_at,
        "loading_s": work.stages.outside_s.get("load"),
        "evaluation_s": work.stages.outside_s.get("eval", 0.0),
    }
    return summary.model_copy(update={"before": before, "after": after, **seconds})


def fit(work: Work, recorder: StepRecorder | None) -> None:
    """Train for the planned number of steps; without a recorder nothing is measured."""
    axes, recipe, stages = work.trial.cell.axes, work.trial.cell.workload.recipe, work.stages
    num_micro_steps = int(axes["num_accumulation_steps"])
    if recorder is not None:
        recorder.restart()
    for step in range(work.schedule.num_steps):
        stages.step = step
        learning_rate = work.schedule.at(step)
        set_learning_rate(work.optimizer, learning_rate)
        loss_sum = torch.zeros((), device=work.rank.device)
        counts: dict[str, int] = {}
        for micro_step in range(num_micro_steps):
            stages.enter("data")
            dealt = work.feed.next()
            stages.enter("forward")
            with work.strategy.accumulate(is_last=micro_step == num_micro_steps - 1):
                with work.precision.compute(work.rank.device):
                    loss = work.loss(work.model, dealt.batch, dealt.pixel_values)
                stages.enter("backward")
                # Over all supervised tokens of the update, so that any split into ranks and micro-steps is
                # the same mathematics: gradients are summed everywhere, averaged nowhere.
                torch.autograd.backward(loss / dealt.global_supervised_tokens)
            loss_sum += loss.detach()
            counts = {name: counts.get(name, 0) + count for name, count in dealt.batch.counts().items()}
        stages.enter("optimizer")
        grad_norm = work.strategy.clip(work.model, recipe.max_grad_norm)
        work.optimizer.step()
        work.optimizer.zero_grad(set_to_none=True)
        if recorder is not None:
            recorder.finish(Scalars(step, learning_rate, counts), loss_sum, grad_norm)


def ask(work: Work, paths: TrialPaths, when: str) -> Answers | None:
    """Ask the validation questions; the first rank returns what came of it."""
    questions = work.material.questions
    if questions is None:
        return None
    work.stages.outside("eval")
    return evaluate(
        work.strategy.unwrap(work.model),
        work.material.tokenizer,
        questions,
        work.material.generation,
        work.precision.compute,
        rank=work.rank.rank,
        num_ranks=work.rank.num_ranks,
        gather=work.strategy.gather,
        path=paths.predictions(when),
    )


def summarise_rank(work: Work, records: list[StepRecord], sampler: GpuSampler | None) -> RankSummary:
    """Say what this rank knows beyond its step lines."""
    peak = work.memory.peak()
    on_gpu = work.rank.device.type == "cuda"
    energy: dict[str, Any] = {}
    if on_gpu:
        # The window that throughput is computed over, which takes the slowest rank of every step to know.
        steady = {step.step for step in merge_steps(work.strategy.gather(records)) if step.steady}
        window = [record for record in records if record.step in steady]
        if sampler is not None and window:
            used = sampler.usage(window[0].started_at, window[-1].started_at + window[-1].step_time_s)
            energy = {"energy_j": used.energy_j, "power_w": used.power_w, "gpu_utilisation": used.utilisation}
    return RankSummary(
        num_parameters=work.num_parameters,
        num_trainable_parameters=work.num_trainable_parameters,
        first_step_at=records[0].started_at if records else 0.0,
        peak_allocated_bytes=peak.allocated_bytes if on_gpu else None,
        peak_reserved_bytes=peak.reserved_bytes,
        peak_nvml_used_bytes=sampler.peak_used_bytes() if sampler is not None else None,
        peak_rss_growth_bytes=None if on_gpu else peak.allocated_bytes,
        **energy,
    )


def leave_provenance(paths: TrialPaths, rank: Rank, facts: Facts) -> None:
    """Write the provenance, once a trial."""
    if rank.is_first and not paths.provenance.exists():
        told = {name: fact for tell in facts for name, fact in tell().items()}
        write_document(paths.provenance, provenance.capture(rank.device, rank.num_ranks, **told))
