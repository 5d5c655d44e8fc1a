"""Trials that are cut off at a chosen moment, after saves at chosen steps, and attempts that go on from there."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from training_trials import in_ranks, make_trial, one_rank, run_keeping_weights

from egobench.probes.pulse import Pulse
from egobench.records.claim import archive
from egobench.records.measures import StepRecord
from egobench.records.outcome import Phase
from egobench.records.store import TrialPaths, read_lines
from egobench.records.trial import Trial
from egobench.spec.keep import Save
from egobench.train import loop, saving
from egobench.train.rank import Rank

Moment = tuple[Phase, int]
Weights = dict[str, torch.Tensor]


class Cut(BaseException):
    """The rank dies here."""


class CutPulse(Pulse):
    """Asks for a save in the middle of some steps, and dies at a moment."""

    def __init__(self, paths: TrialPaths, rank: int, save_after: Collection[int], cut: Moment | None) -> None:
        self._request = paths.save_request
        self._save_after, self._cut = save_after, cut
        super().__init__(paths.rank_pulse(rank))

    def mark(self, phase: Phase, step: int) -> None:
        super().mark(phase, step)
        if phase == "forward" and step in self._save_after:
            self._request.touch()
        if (phase, step) == self._cut:
            raise Cut


def saving_trial(folder: Path, acceptable_loss_h: float = 1000, **more: Any) -> Trial:
    """A trial that saves when it is asked to, and never because of the time."""
    trial = make_trial(folder, **more)
    return trial.model_copy(update={"save": Save(acceptable_loss_h=acceptable_loss_h)})


def lines_of(folder: Path, rank: int = 0) -> list[StepRecord]:
    return read_lines(TrialPaths(folder).rank_steps(rank), StepRecord)


def attempt(
    trial: Trial, folder: Path, save_after: Collection[int] = (), cut: Moment | None = None, rank: Rank | None = None
) -> tuple[Any, Weights]:
    """Run an attempt in this process: what earlier ones left is moved aside first, as a claim does."""
    paths = TrialPaths(folder)
    rank = rank or one_rank()
    if rank.num_ranks == 1:
        archive(paths)
    looked_every_s, saving.LOOK_EVERY_S = saving.LOOK_EVERY_S, 0.0  # after every step but the first
    run = loop.run

    def run_cut(trial: Trial, paths: TrialPaths, rank: Rank, _pulse: Pulse) -> Any:
        return run(trial, paths, rank, CutPulse(paths, rank.rank, save_after if rank.is_first else (), cut))

    try:
        with contextlib.suppress(Cut):
            return run_keeping_weights(trial, folder, rank, run_cut)
        return None, {}
    finally:
        saving.LOOK_EVERY_S = looked_every_s


def attempt_in_ranks(
    trial: Trial, folder: Path, save_after: Collection[int] = (), cut: Moment | None = None, timeout_s: float = 120
) -> list[tuple[Any, Weights]]:
    """Run an attempt in real gloo ranks."""
    archive(TrialPaths(folder))
    meeting = folder.parent / f"meeting-{folder.name}"
    shutil.rmtree(meeting, ignore_errors=True)
    body = functools.partial(_attempt_of_rank, trial, folder, save_after, cut)
    found = in_ranks(trial.num_ranks, meeting, body, timeout_s=timeout_s)
    assert all(isinstance(one, tuple) for one in found), found
    return found


def _attempt_of_rank(
    trial: Trial, folder: Path, save_after: Collection[int], cut: Moment | None, _meeting: Path, rank: Rank
) -> tuple[Any, Weights]:
    return attempt(trial, folder, save_after, cut, rank)
