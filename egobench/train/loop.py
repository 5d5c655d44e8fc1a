"""One trial, read from top to bottom: run -> setup -> main -> fit. The same loop for every point of a matrix."""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import Any

import torch

from egobench.errors import EgobenchError
from egobench.evaluate.ask import evaluate
from egobench.probes import provenance
from egobench.probes.clock import PhaseClock
from egobench.probes.device import GpuSampler, sampler_of
from egobench.probes.flops import peak_flops
from egobench.probes.profile import SteadyMemory, StepProfiler
from egobench.records.measures import Answers, StepRecord
from egobench.records.rank import RankSummary
from egobench.records.store import TrialPaths, write_document
from egobench.records.summary import merge_steps
from egobench.records.trial import Trial
from egobench.spec.axes import MAX
from egobench.train.compile import uncompiled
from egobench.train.drill import Rehearsal
from egobench.train.export import export
from egobench.train.optimizers import set_learning_rate
from egobench.train.rank import Rank
from egobench.train.recorder import Scalars, StepRecorder
from egobench.train.resume import Past, restore, size_so_far
from egobench.train.saving import Saver
from egobench.train.setup import Facts, Origin, Work, setup
from egobench.train.stages import Pulse, Stages
from egobench.train.worst_case import run_worst_case


def run(
    trial: Trial,
    paths: TrialPaths,
    rank: Rank,
    pulse: Pulse,
    origin: Origin = Origin(),  # noqa: B008
) -> RankSummary:
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
        found = size_so_far(trial, rank, paths)
        work = setup(trial, rank, Stages(pulse, clock, rehearsal), facts, origin, found)
        if rehearsal is not None:
            rehearsal.model = work.model
        return main(work, paths, clock, facts)
    except BaseException:
        # A failure is a result too, and must be as easy to place as any other; but its own error is the one to tell.
        with contextlib.suppress(RuntimeError, OSError, EgobenchError):
            leave_provenance(paths, rank, facts)
        raise


def main(work: Work, paths: TrialPaths, clock: PhaseClock, facts: Facts) -> RankSummary:
    """Ask, train, ask again, and say what the step lines do not."""
    is_kept = work.trial.save.acceptable_loss_h is not None
    past = restore(work, paths) if is_kept else Past()
    before = past.before
    if work.trial.cell.workload.evaluation.before and not past.step:
        before = ask(work, paths, "before")
    run_worst_case(work)
    work.memory.reset()
    sampler = sampler_of(work.rank.device)
    saver = None
    if is_kept:
        if work.rank.device.type == "cpu":
            work.memory = SteadyMemory(work.memory)
        saver = Saver(work, paths, past, before, lambda: peak_nvml_used(sampler, past))
    profiler = None
    if work.trial.profile is not None:
        profiler = StepProfiler(work.trial, paths.profile, work.rank, work.stages, work.memory)
        work.memory = profiler.memory
    clock.watch = work.split.enter
    lines = paths.rank_steps(work.rank.rank)
    try:
        with StepRecorder(lines, clock, work.memory, work.rank.device, past.records) as recorder:
            fit(work, recorder, past, saver, profiler)
        kernels = profiler.kernels() if profiler is not None else None
    finally:
        work.feed.close()
        if profiler is not None:
            profiler.close()
        if sampler is not None:
            sampler.stop()
    summary = summarise_rank(work, recorder.records, sampler, past)
    leave_provenance(paths, work.rank, facts)  # only now: it would have delayed the first step
    after = ask(work, paths, "after")
    export(work, paths)
    work.stages.outside("done")
    seconds = {
        "began_at": work.stages.began_at,
        "loading_s": work.stages.outside_s.get("load"),
        "evaluation_s": work.stages.outside_s.get("eval", 0.0),
    }
    return summary.model_copy(update={"before": before, "after": after, "kernels": kernels, **seconds})


def fit(
    work: Work,
    recorder: StepRecorder | None,
    past: Past = Past(),  # noqa: B008
    saver: Saver | None = None,
    profiler: StepProfiler | None = None,
) -> None:
    """Train up to the planned number of steps; without a recorder nothing is measured."""
    axes, recipe, stages = work.trial.cell.axes, work.trial.cell.workload.recipe, work.stages
    num_micro_steps = int(axes["num_accumulation_steps"])
    if recorder is not None:
        recorder.restart()
    for step in range(past.step, work.schedule.num_steps):
        stages.step = step
        if profiler is not None:
            profiler.before(step, recorder)
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
                    loss = work.loss.compute(work.model, dealt.batch, dealt.pixel_values)
                stages.enter("backward")
                # Over all supervised tokens of the update, so that any split into ranks and micro-steps is
                # the same mathematics: gradients are summed everywhere, averaged nowhere.
                work.strategy.backward(loss / dealt.global_supervised_tokens)
            loss_sum += loss.detach()
            counts = {name: counts.get(name, 0) + count for name, count in work.flops.counts(dealt.batch).items()}
        stages.enter("optimizer")
        grad_norm = work.strategy.update(recipe.max_grad_norm)
        if recorder is not None:
            excluded = past.excluded(step) or (saver.excluded(step) if saver is not None else "")
            excluded = excluded or (profiler.excluded(step) if profiler is not None else "")
            scalars = Scalars(step, learning_rate, counts, excluded, work.precision.scales_loss)
            recorder.finish(scalars, loss_sum, grad_norm)
        if profiler is not None:
            profiler.after(step, recorder)
        if saver is not None:
            saver.after(step, recorder)


def ask(work: Work, paths: TrialPaths, when: str) -> Answers | None:
    """Ask the validation questions; the first rank returns what came of it."""
    questions = work.material.questions
    if questions is None:
        return None
    work.stages.outside("eval")
    with uncompiled(str(work.trial.cell.axes["compile"])):
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
            device=work.rank.device,
            in_lockstep=work.strategy.answers_in_lockstep,
        )


def summarise_rank(
    work: Work,
    records: list[StepRecord],
    sampler: GpuSampler | None,
    past: Past = Past(),  # noqa: B008
) -> RankSummary:
    """Say what this rank knows beyond its step lines."""
    peak = work.memory.peak()
    on_gpu = work.rank.device.type == "cuda"
    own = [record for record in records if record.step >= past.step]
    # The window that throughput is computed over, which takes the slowest rank of every step to know.
    steady = {step.step for step in merge_steps(work.strategy.gather(records)) if step.steady} if on_gpu else set()
    return RankSummary(
        num_parameters=work.num_parameters,
        num_trainable_parameters=work.num_trainable_parameters,
        first_step_at=own[0].started_at if own else time.time(),
        peak_allocated_bytes=peak.allocated_bytes if on_gpu else None,
        peak_reserved_bytes=peak.reserved_bytes,
        peak_nvml_used_bytes=peak_nvml_used(sampler, past),
        peak_rss_growth_bytes=None if on_gpu else peak.allocated_bytes,
        memory=work.split.split(peak.allocated_bytes),
        peak_flops=peak_flops(work.rank.device, work.trial.cell.axes["precision"]),
        resumed_at=past.resumed_at,
        micro_batch_size=work.feed.micro_batch_size if work.trial.cell.axes["micro_batch_size"] == MAX else None,
        **(energy_over([record for record in records if record.step in steady], sampler, past) if sampler else {}),
    )


def energy_over(window: list[StepRecord], sampler: GpuSampler, past: Past) -> dict[str, Any]:
    """Return what the GPU used in the steps of a window, without what lies between them (a save, a profiled step).

    An earlier attempt's share is not on record: a window that reaches back into it has a power, but no energy.
    """
    own = [record for record in window if record.step >= past.step]
    if not own:
        return {}
    pieces: list[list[StepRecord]] = [[own[0]]]
    for earlier, record in itertools.pairwise(own):
        if record.step == earlier.step + 1:
            pieces[-1].append(record)
        else:
            pieces.append([record])
    used = sampler.usage_of([(piece[0].started_at, piece[-1].started_at + piece[-1].step_time_s) for piece in pieces])
    energy_j = used.energy_j if len(own) == len(window) else None
    return {"energy_j": energy_j, "power_w": used.power_w, "gpu_utilisation": used.utilisation}


def peak_nvml_used(sampler: GpuSampler | None, past: Past) -> int | None:
    """Return the largest used memory of the GPU, earlier attempts included."""
    seen = [past.peak_nvml_used_bytes, sampler.peak_used_bytes() if sampler is not None else None]
    return max((value for value in seen if value is not None), default=None)


def leave_provenance(paths: TrialPaths, rank: Rank, facts: Facts) -> None:
    """Write the provenance, once a trial."""
    if rank.is_first and not paths.provenance.exists():
        told = {name: fact for tell in facts for name, fact in tell().items()}
        write_document(paths.provenance, provenance.capture(rank.device, rank.num_ranks, **told))
