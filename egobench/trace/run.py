"""Trace one cell: assemble its model as the worker does, run an update, and read the log of storages."""

from __future__ import annotations

import contextlib
import gc
import time
from dataclasses import asdict
from typing import Any, Final

from torch._subclasses.fake_tensor import FakeTensorMode

from egobench.models.parts import core
from egobench.probes.clock import NullClock
from egobench.probes.memory import held_by
from egobench.records.outcome import Phase
from egobench.records.trace import Traced, TracedCounts, TraceRequest
from egobench.records.trial import Placement, Trial
from egobench.spec import axes as tables
from egobench.trace import kernels, pretend
from egobench.trace.allocator import Replayed, replay
from egobench.trace.batch import micro_batch, narrowed
from egobench.trace.counts import Counts
from egobench.trace.peaks import held_bytes, phases_of
from egobench.trace.storages import Storages
from egobench.trace.support import as_traced, refusal
from egobench.train import dry_run
from egobench.train.feed import Dealt
from egobench.train.losses import Loss
from egobench.train.material import build_model
from egobench.train.rank import Rank
from egobench.train.resolve import resolve
from egobench.train.setup import Assembled, assemble, strategy_of
from egobench.train.stages import Stages
from egobench.train.strategies import whole
from egobench.train.strategies.zero import import_deepspeed

OTHER_RANK: Final = 1
"""Traced where there are several: the first one also builds the model and sends it around."""


def trace(request: TraceRequest) -> Traced:
    """Return what an update of the cell allocates, computes and sends."""
    began = time.perf_counter()
    if reason := refusal(request):
        return Traced(reason=f"not traced: {reason}")
    axes, remarks = as_traced(request.cell.axes, request.imitates)
    trial = _trial(request, axes)
    num_ranks = trial.num_ranks
    rank = Rank(min(OTHER_RANK, num_ranks - 1), 0, num_ranks, pretend.CPU)
    with contextlib.ExitStack() as stack:
        if axes["strategy"] != "single":
            stack.enter_context(pretend.ranks(rank.rank, num_ranks))
        stack.enter_context(pretend.without_peers())
        if str(axes["strategy"]).startswith("zero"):
            deepspeed = import_deepspeed(rank)  # now: what a library makes when it is imported must be real
            stack.enter_context(pretend.lonely_deepspeed(deepspeed, on_gpu=request.imitates == "cuda"))
        if request.num_blocks is not None:
            stack.enter_context(pretend.shallow(str(request.cell.workload.model.name), request.num_blocks))
        if request.imitates == "cuda":
            stack.enter_context(kernels.of_cuda())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        watch = Watch(request.batch.lengths)
        stack.enter_context(watch.storages)
        work = _assembled(trial, rank, watch)
        image_px = core(work.strategy.unwrap(work.model)).config.vision_config.image_size[0]
        found = watch.update(work, micro_batch(request.batch, image_px))
        if request.further:
            for width in request.further:
                watch.another_update(work, micro_batch(narrowed(request.batch, width), image_px))
            found = found.model_copy(update=asdict(watch.replayed()))
    return found.model_copy(update={"remarks": remarks, "time_s": time.perf_counter() - began})


class Watch:
    """Watches a rank's storages and operators; told of every phase, as the pulse of a trial is."""

    def __init__(self, lengths: tuple[int, ...] = ()) -> None:
        """Args: lengths: Of the samples of a packed row."""
        self.counts = Counts(lengths)
        self.storages = Storages(self.counts.hear)

    def mark(self, phase: Phase, step: int) -> None:
        """Note that a phase begins."""
        self.storages.log.mark(phase)

    def update(self, work: Assembled, dealt: Dealt) -> Traced:
        """Make one update, with the last micro-step and one before it if there are more; call it inside `storages`."""
        if work.trial.cell.axes["strategy"] == "zero3":
            self._micro_steps(work, dealt, 1)  # it learns in its first update in which order to gather ahead
            work.strategy.update(work.trial.cell.workload.recipe.max_grad_norm)
        dry_run.settle(work, dealt)
        self._label(work)
        gc.collect()
        self.storages.log.mark("measured")
        self.counts.take()
        earlier, last = self._micro_steps(work, dealt, _number(work))
        work.stages.enter("optimizer")
        self._label(work)
        work.strategy.update(work.trial.cell.workload.recipe.max_grad_norm)
        self._label(work)
        del dealt
        return self._told(work, earlier, last)

    def another_update(self, work: Assembled, dealt: Dealt) -> None:
        """Make one more update, as all are but the first."""
        self._micro_steps(work, dealt, _number(work))
        work.strategy.update(work.trial.cell.workload.recipe.max_grad_norm)

    def replayed(self) -> Replayed:
        """Return what a GPU's allocator does from the first update on, before which a trial empties it."""
        log = self.storages.log
        return replay(log, next(at for at, name in log.marks if name == "measured"))

    def _micro_steps(self, work: Assembled, dealt: Dealt, number: int) -> tuple[TracedCounts, TracedCounts]:
        """Run micro-steps of an update; return what the last two of them executed."""
        earlier, last = TracedCounts(), TracedCounts()
        for index in range(number):
            dry_run.run(work, dealt, is_last=index == number - 1)
            earlier, last = last, self.counts.take()
        return earlier, last

    def _told(self, work: Assembled, earlier: TracedCounts, last: TracedCounts) -> Traced:
        update = self.counts.take()
        gc.collect()
        log = self.storages.log
        return Traced(
            phases=phases_of(log),
            held_bytes=held_bytes(log),
            earlier=earlier,
            last=last,
            update=update,
            num_parameters=work.num_parameters,
            num_trainable_parameters=work.num_trainable_parameters,
        )

    def _label(self, work: Assembled) -> None:
        held = held_by(work.strategy, work.model, work.optimizer)
        self.storages.label(held.optimizer, "optimizer")
        self.storages.label(held.gradients, "gradients")
        self.storages.label(held.parameters, "parameters")


def _number(work: Assembled) -> int:
    """Return how many micro-steps stand for those of an update: further ones find what the second one found."""
    return min(2, int(work.trial.cell.axes["num_accumulation_steps"]))


def _trial(request: TraceRequest, axes: dict[str, Any]) -> Trial:
    placement = Placement(
        site="trace", device="cpu", num_nodes=request.num_nodes, base_folder=request.base_folder, cache_folder=""
    )
    cell = request.cell.model_copy(update={"axes": axes})
    return Trial(sweep="trace", cell=cell, trial=0, placement=placement)


def _assembled(trial: Trial, rank: Rank, watch: Watch) -> Assembled:
    stages = Stages(watch, NullClock())
    strategy, precision = strategy_of(trial, rank, stages)
    # Shapes alone, wherever the strategy would build: no weight is read or drawn.
    loaded = build_model(trial, precision.parameters, whole.META)
    place = strategy.builds_on()
    if place != whole.META:
        whole.replace_parameters(loaded.model, place)
        pretend.replace_buffers(loaded.model, place)
    loss: Loss = resolve(tables.LOSSES, trial.cell.axes["loss"], "axes.loss")
    return assemble(trial, rank, stages, strategy, precision, loaded.model, loss)
