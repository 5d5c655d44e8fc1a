"""Students in real gloo ranks train as a single rank does, under every strategy."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from distilling import how_of, losses_of, run_student, trial_of
from safetensors import safe_open
from training_trials import in_ranks, one_rank

from egobench.records.store import TrialPaths
from egobench.spec.keep import Save
from egobench.train.losses import OWN
from egobench.train.rank import Rank

GLOBAL_BATCH = 4
LIVE = {"cross_entropy": 0.3, "temperature": 2.0, "hidden": 0.2}
HOWS: dict[str, dict[str, Any]] = {
    "live": LIVE,
    "cached": {"cross_entropy": 0.3, "divergence": "jsd", "teacher_logits": "cached", "top_k": 16},
    "maps": LIVE | {"attention": 0.5, "divergence": "reverse_kl"},
    "tied": {"student": {"layers": 2, "tied": True}, "cross_entropy": 0.3},
}
Cases = dict[str, tuple[str, dict[str, Any]]]
QUICK: Cases = {
    "ddp": ("live", {"strategy": "ddp"}),
    "fsdp": ("live", {"strategy": "fsdp", "checkpointing": "full"}),
    "zero2_cached": ("cached", {"strategy": "zero2"}),
    "zero3": ("live", {"strategy": "zero3"}),
}
MORE: Cases = {
    "zero1": ("live", {"strategy": "zero1"}),
    "ddp_accumulated": ("maps", {"strategy": "ddp", "attention": "eager", "num_accumulation_steps": 2}),
    "fsdp_cached": ("cached", {"strategy": "fsdp"}),
    "fsdp_accumulated": ("live", {"strategy": "fsdp", "num_accumulation_steps": 2}),
    "fsdp_maps": ("maps", {"strategy": "fsdp", "attention": "eager", "checkpointing": "full"}),
    "fsdp_tied": ("tied", {"strategy": "fsdp"}),
    "zero3_maps": ("maps", {"strategy": "zero3", "attention": "eager"}),
    "zero3_cached": ("cached", {"strategy": "zero3", "checkpointing": "full"}),
    "zero3_tied": ("tied", {"strategy": "zero3"}),
}


def train(how: str, axes: Mapping[str, Any], folder: Path, rank: Rank) -> list[str]:
    """Train one case and leave its model; return the names of its weights."""
    micro = GLOBAL_BATCH // (rank.num_ranks * int(axes.get("num_accumulation_steps", 1)))
    own = {"gpus": rank.num_ranks, "micro_batch_size": micro} | dict(axes)
    trial = trial_of(folder, own, evaluation={"num_questions": 3, "batch_size": 4})
    trial = trial.model_copy(update={"save": Save(export="merged")})
    return sorted(run_student(how_of(**HOWS[how]), trial, folder, rank)[1])


def train_all(cases: Cases, folder: Path, rank: Rank) -> dict[str, list[str]]:
    return {name: train(how, axes, folder / name, rank) for name, (how, axes) in cases.items()}


def check(cases: Cases, folder: Path) -> None:
    for how in {how for how, _ in cases.values()}:
        train(how, {"attention": "eager"} if how == "maps" else {}, folder / "alone" / how, one_rank())
    said = in_ranks(2, folder, functools.partial(train_all, cases), timeout_s=500)
    assert all(isinstance(one, dict) for one in said), said
    for name, (how, _) in cases.items():
        alone, spread = losses_of(folder / "alone" / how), losses_of(folder / name, 2)
        assert len(alone) == 4
        expected = [value for line in alone for value in line]
        assert [value for line in spread for value in line] == pytest.approx(expected, rel=1e-4, abs=1e-6), name
        # Projections are trained, and no part of the student.
        assert any(OWN in weight for weight in said[0][name]) == ("hidden" in HOWS[how]), name
        with safe_open(TrialPaths(folder / name).model / "model.safetensors", "pt") as file:
            assert not any(OWN in weight for weight in file.keys()), name  # noqa: SIM118


def test_ranks_train_as_one(tmp_path: Path) -> None:
    check(QUICK, tmp_path)
    # They share the writing of a cache, which is the one that a single rank writes.
    alone, shared = (sorted((tmp_path / of / "cache" / "teacher").iterdir()) for of in ("alone/cached", "zero2_cached"))
    assert [one.name for one in alone] == [one.name for one in shared]
    assert [len(list(one.glob("block-*"))) for one in (*alone, *shared)] == [1, 2]


@pytest.mark.slow
def test_ranks_train_as_one_in_more_ways(tmp_path: Path) -> None:
    check(MORE, tmp_path)
