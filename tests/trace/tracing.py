"""Requests for traces of egotiny, and the same updates made for real."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))

from training_trials import make_trial

from egobench.probes.clock import NullClock
from egobench.records.trace import Traced, TracedBatch, TraceRequest
from egobench.records.trial import Trial
from egobench.trace.run import Watch
from egobench.train.feed import Dealt
from egobench.train.rank import Rank
from egobench.train.setup import setup
from egobench.train.stages import Stages

SAMPLES = (0, 1, 2, 3)


def trial_of(folder: Path, axes: dict[str, Any]) -> Trial:
    return make_trial(folder, axes=axes)


def request_of(trial: Trial, batch: TracedBatch, imitates: Any = "cpu") -> TraceRequest:
    return TraceRequest(cell=trial.cell, batch=batch, imitates=imitates)


def some_batch(num_supervised: int = 20) -> TracedBatch:
    return TracedBatch(num_rows=4, width=96, num_images=4, num_supervised=num_supervised, lengths=(96, 90, 80, 70))


def shapes_of(dealt: Dealt) -> TracedBatch:
    """Return what a trace is told of a real micro-batch."""
    batch = dealt.batch
    rows, width = batch.input_ids.shape
    return TracedBatch(
        num_rows=rows,
        width=width,
        num_images=len(batch.pixels),
        num_supervised=batch.supervised_tokens,
        lengths=batch.lengths,
        is_packed=batch.cu_seqlens is not None,
    )


def really(trial: Trial, rank: Rank) -> tuple[Traced, TracedBatch]:
    """Make an update of real tensors, watched as a trace is; return also the shapes of its micro-batch."""
    watch = Watch()
    with watch.storages:
        work = setup(trial, rank, Stages(watch, NullClock()), [])
        dealt = work.feed.gathered(SAMPLES)
        shapes = shapes_of(dealt)
        return watch.update(work, dealt), shapes
