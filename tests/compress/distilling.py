"""Trials that train a student of egotiny, here and in real ranks."""

from __future__ import annotations

import functools
import shutil
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))

from training_trials import make_trial, one_rank, run_keeping_weights

from egobench.compress.distill import distilled
from egobench.models.internvl import EGOTINY
from egobench.probes.clock import NullClock
from egobench.probes.pulse import Pulse
from egobench.records.measures import StepRecord
from egobench.records.store import TrialPaths, read_lines
from egobench.records.summary import merge_steps
from egobench.records.trial import Trial
from egobench.spec.distillation import Distillation
from egobench.train.loop import run
from egobench.train.rank import Rank
from egobench.train.setup import Work, setup
from egobench.train.stages import Stages

SMALL = {"layers": 2, "ffn": 96, "tower_layers": 1}


def how_of(**said: Any) -> Distillation:
    return Distillation.model_validate({"student": SMALL} | said)


def trial_of(folder: Path, axes: Mapping[str, Any] | None = None, **more: Any) -> Trial:
    return make_trial(folder, axes=dict(axes or {}), model={"name": "egotiny"}, **more)


def set_up(how: Distillation, trial: Trial, teacher: Path = EGOTINY, rank: Rank | None = None) -> Work:
    """Set a student's trial up in this process, without running it."""
    paths = TrialPaths(Path(trial.placement.base_folder))
    stages = Stages(Pulse(paths.rank_pulse(0)), NullClock())
    return setup(trial, rank or one_rank(), stages, [], distilled(how, teacher))


def run_student(how: Distillation, trial: Trial, folder: Path, rank: Rank) -> tuple[Any, dict[str, torch.Tensor]]:
    folder.mkdir(parents=True, exist_ok=True)
    return run_keeping_weights(trial, folder, rank, functools.partial(run, origin=distilled(how, EGOTINY)))


def losses_of(folder: Path, num_ranks: int = 1) -> list[tuple[float, float]]:
    """Return loss and gradient norm of every step."""
    lines = [read_lines(TrialPaths(folder).rank_steps(rank), StepRecord) for rank in range(num_ranks)]
    return [(line.loss, line.grad_norm) for line in merge_steps(lines)]


def copied_teacher(folder: Path) -> Path:
    """Copy egotiny to where it may be damaged."""
    shutil.copytree(EGOTINY, folder)
    return folder


class Living(TorchDispatchMode):
    """Watches how many bytes of logits live at once: storages in which something is [..., vocabulary]."""

    def __init__(self, vocabulary: int, but: tuple[torch.Size, ...] = ()) -> None:
        super().__init__()
        self._vocabulary, self._but = vocabulary, but
        self._held: dict[int, int] = {}
        self.most_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.ndim > 1 and leaf.shape not in self._but:
                self._hold(leaf)
        self.most_bytes = max(self.most_bytes, sum(self._held.values()))
        return out

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if tensor.shape[-1] == self._vocabulary and key not in self._held:
            self._held[key] = storage.nbytes()
            weakref.finalize(storage, self._held.pop, key, None)
