"""DDP holds one set of gradients: micro-steps add up in its buckets, from the first update on."""

from __future__ import annotations

import functools
from pathlib import Path

from training_trials import in_ranks, make_trial

from egobench.probes.clock import NullClock
from egobench.probes.pulse import Pulse
from egobench.records.store import TrialPaths
from egobench.train import dry_run
from egobench.train.rank import Rank
from egobench.train.setup import setup
from egobench.train.stages import Stages
from egobench.train.worst_case import run_worst_case


def _places(num_steps: int, folder: Path, rank: Rank) -> list[set[int]]:
    """Return where the gradients are in each micro-step of two updates."""
    axes = {"strategy": "ddp", "gpus": 2, "num_accumulation_steps": num_steps, "micro_batch_size": 2}
    stages = Stages(Pulse(TrialPaths(folder).rank_pulse(rank.rank)), NullClock())
    work = setup(make_trial(folder, axes=axes), rank, stages, [])
    run_worst_case(work)
    seen = []
    for _ in range(2):
        for index in range(num_steps):
            dry_run.run(work, work.feed.next(), is_last=index == num_steps - 1)
            seen.append(
                {one.grad.untyped_storage().data_ptr() for one in work.model.parameters() if one.grad is not None}
            )
        work.strategy.update(1.0)
    left = [one.grad for one in work.model.parameters() if one.grad is not None]
    assert all(not one.any() for one in left) and bool(left) == (num_steps > 1)
    return seen


def test_micro_steps_add_up_in_the_buckets(tmp_path: Path) -> None:
    for said in in_ranks(2, tmp_path, functools.partial(_places, 2)):
        assert not isinstance(said, BaseException), said
        assert len(said) == 4 and all(places == said[0] for places in said)
