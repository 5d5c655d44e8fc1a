"""Every strategy x method x checkpointing x padding x accumulation is the same mathematics as one plain rank.

The default suite takes a thin slice in which every value meets every strategy; `make parity` takes the whole product.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Trained, differences, train_all, trial_of
from training_trials import NOISE

pytestmark = pytest.mark.timeout(900)  # the fixture trains everything that was asked for
Point = tuple[tuple[str, Any], ...]

STRATEGIES: dict[str, dict[str, Any]] = {
    "single": {"strategy": "single", "gpus": 1},
    "ddp": {"strategy": "ddp", "gpus": 2},
    "fsdp": {"strategy": "fsdp", "gpus": 2},
    "fsdp_grad_op": {"strategy": "fsdp", "gpus": 2, "sharding": "shard_grad_op"},
    "zero1": {"strategy": "zero1", "gpus": 2},
    "zero2": {"strategy": "zero2", "gpus": 2},
    "zero3": {"strategy": "zero3", "gpus": 2},
}
FOUR_RANKS: dict[str, dict[str, Any]] = {
    "ddp4": {"strategy": "ddp", "gpus": 4},
    "fsdp4": {"strategy": "fsdp", "gpus": 4},
    "hybrid4": {"strategy": "fsdp", "gpus": 4, "sharding": "hybrid_shard"},
    "zero3_4": {"strategy": "zero3", "gpus": 4},
}
METHODS = ("full", "lora", "dora", "freeze", "last_blocks")
CHECKPOINTINGS = ("none", "full", "selective", "every_2")
PADDINGS = ("dynamic", "max", "bucketed", "packed")
ACCUMULATIONS = (1, 2)
LIMITS = {"loss": 1e-4, "grad_norm": 1e-4, "weights": NOISE}
"""fp32, three steps of AdamW at 1e-3."""


def point(strategy: Mapping[str, Any], method: str, checkpointing: str, padding: str, steps: int) -> Point:
    own = {"method": method, "checkpointing": checkpointing, "padding": padding, "num_accumulation_steps": steps}
    return tuple(sorted({**strategy, "attention": "sdpa", **own}.items()))


def thin() -> list[Point]:
    """Return a slice in which every value of every axis meets every strategy."""
    points = []
    for turn, strategy in enumerate(STRATEGIES.values()):
        for index in range(max(len(METHODS), len(CHECKPOINTINGS), len(PADDINGS))):
            values = (METHODS, CHECKPOINTINGS, PADDINGS, ACCUMULATIONS)
            # Each axis is turned by another stride, so that other values meet under the next strategy.
            chosen = [names[(index + turn * stride) % len(names)] for stride, names in enumerate(values)]
            points.append(point(strategy, *chosen))  # type: ignore[arg-type]
    return points


def of_four() -> list[Point]:
    return [point(strategy, "full", "none", "dynamic", 1) for strategy in FOUR_RANKS.values()]


def whole() -> list[Point]:
    axes = (METHODS, CHECKPOINTINGS, PADDINGS, ACCUMULATIONS)
    points = [point(strategy, *values) for strategy in STRATEGIES.values() for values in itertools.product(*axes)]
    four = itertools.product(METHODS, CHECKPOINTINGS[:2], PADDINGS[::3], (1,))
    return points + [point(one, *values) for values in four for one in FOUR_RANKS.values()]


def train_points(points: Iterable[Point], folder: Path) -> dict[Point, Trained]:
    """Train every point, those of one launch in the same ranks."""
    launches: dict[tuple[str, int], list[Point]] = defaultdict(list)
    for one in dict.fromkeys(points):
        axes = dict(one)
        launches[axes["strategy"], axes["gpus"]].append(one)
    trained: dict[Point, Trained] = {}
    for (strategy, gpus), members in launches.items():
        trials = [trial_of(folder, dict(one)) for one in members]
        trained |= zip(members, train_all(trials, folder / f"{strategy}{gpus}"), strict=True)
    return trained


def reference_of(one: Point) -> Point:
    """Return the plain point that a point is compared with: one rank, eager attention, nothing saved or packed."""
    plain = point(STRATEGIES["single"], dict(one)["method"], "none", "dynamic", 1)
    return tuple(sorted((dict(plain) | {"attention": "eager"}).items()))


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Point, Trained]:
    wanted = [
        item.callspec.params["one"]
        for item in request.session.items
        if hasattr(item, "callspec") and "one" in item.callspec.params and item.fspath == request.fspath
    ]
    return train_points([*map(reference_of, wanted), *wanted], tmp_path_factory.mktemp("parity"))


def name_of(one: Point) -> str:
    axes = dict(one)
    return "-".join(
        str(axes[name])
        for name in ("strategy", "gpus", "sharding", "method", "checkpointing", "padding", "num_accumulation_steps")
        if name in axes
    )


def check(one: Point, trained: dict[Point, Trained]) -> None:
    reference, found = trained[reference_of(one)], trained[one]
    assert not reference.error, reference.error
    assert not found.error, found.error
    assert len(reference.weights) > 100
    apart = differences(reference, found)
    assert all(apart[what] <= limit for what, limit in LIMITS.items()), apart
    samples = [step.num_samples for step in found.steps]
    assert samples == [step.num_samples for step in reference.steps]
    assert [s.supervised_tokens for s in found.steps] == [s.supervised_tokens for s in reference.steps]


def _is_rare(axes: Mapping[str, Any]) -> bool:
    return axes["strategy"] == "zero1" or "sharding" in axes


@pytest.mark.parametrize(
    "one",
    [
        *(pytest.param(one, marks=[pytest.mark.slow] * _is_rare(dict(one))) for one in thin()),
        # Four ranks on two cores take their time; DDP's are enough to see that nothing is made for two.
        *(pytest.param(one, marks=[pytest.mark.slow] * (one != of_four()[0])) for one in of_four()),
    ],
    ids=name_of,
)
def test_thin_slice(one: Point, trained: dict[Point, Trained]) -> None:
    check(one, trained)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("one", whole(), ids=name_of)
def test_whole_product(one: Point, trained: dict[Point, Trained]) -> None:
    check(one, trained)


def _differs(one: Point) -> str:
    axes = dict(one)
    return next(name for name, own in reversed(OTHERS.items()) if own.items() <= axes.items())


OTHERS: dict[str, dict[str, Any]] = {
    "eager": {"attention": "eager"},
    "sdpa_flash": {"attention": "sdpa_flash"},
    "tower_eager": {"attention": "sdpa", "vision_attention": "eager"},
    "tower_recomputed": {"checkpointing": "none", "vision_checkpointing": "full"},
    "chunked": {"loss": "chunked"},
    "chunked_packed_recomputed": {"loss": "chunked", "padding": "packed", "checkpointing": "full"},
    "flash_packed": {"attention": "sdpa_flash", "padding": "packed"},
    "eager_packed": {"attention": "eager", "padding": "packed"},
    "fused": {"optimizer": "adamw_fused"},
    "chunked_lora": {"loss": "chunked", "method": "lora"},
    "qlora": {"method": "qlora"},
    "qlora_packed_recomputed": {"method": "qlora", "padding": "packed", "checkpointing": "full", "loss": "chunked"},
}
"""Axes that the product leaves at their defaults."""


def others() -> list[Point]:
    chosen = [STRATEGIES[name] for name in ("single", "ddp", "fsdp", "zero3")]
    plain = {"method": "full", "checkpointing": "none", "padding": "dynamic", "num_accumulation_steps": 1}
    return [
        tuple(sorted({"attention": "sdpa", **plain, **strategy, **own}.items()))
        for strategy in chosen
        for own in OTHERS.values()
    ]


def _named(one: Point) -> str:
    return f"{dict(one)['strategy']}-{_differs(one)}"


def _some_slow(points: list[Point]) -> list[Any]:
    """Leave half of the strategies to the slow tests."""
    return [
        pytest.param(one, marks=[pytest.mark.slow] if dict(one)["strategy"] in ("ddp", "zero3") else [])
        for one in points
    ]


@pytest.mark.parametrize("one", _some_slow(others()), ids=_named)
def test_the_other_axes(one: Point, trained: dict[Point, Trained]) -> None:
    check(one, trained)


def skip_reduction() -> None:
    """Let every rank step with its own gradients."""
    from egobench.train.strategies import ddp

    def keep(strategy: Any, bucket: Any) -> Any:
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    keep.__annotations__ = ddp._sum_bucket.__annotations__  # DDP reads them
    ddp._sum_bucket = keep


def leak_between_samples() -> None:
    """Call the model as if a packed row were one sample."""
    from egobench.data.batches import Batch

    Batch.inputs = lambda self: {"input_ids": self.input_ids}  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("sabotage", "axes"),
    [(skip_reduction, {"strategy": "ddp", "gpus": 2}), (leak_between_samples, {"padding": "packed"})],
)
def test_the_comparison_sees_what_is_broken(sabotage: Any, axes: dict[str, Any], tmp_path: Path) -> None:
    reference = train_all([trial_of(tmp_path, {})], tmp_path / "whole")[0]
    broken = train_all([trial_of(tmp_path, axes)], tmp_path / "broken", sabotage=sabotage)[0]
    assert not reference.error and not broken.error
    apart = differences(reference, broken)
    assert apart["grad_norm"] > 100 * LIMITS["grad_norm"] and apart["weights"] > LIMITS["weights"], apart
