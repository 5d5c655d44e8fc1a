"""What is compiled trains as what is not, is really compiled, and is compiled a few times only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import training_trials
from torch._dynamo.utils import counters
from training_trials import make_trial, run_ranks, setup_here

from egobench.records.measures import StepRecord
from egobench.records.store import TrialPaths, read_lines
from egobench.train import compile as compiling
from egobench.train.loop import ask
from egobench.train.optimizers import set_learning_rate
from egobench.train.setup import Work

NO_KERNELS, NO_BACKWARD = "aot_eager", "eager"
"""torch.compile without kernels, for which Inductor takes half a minute and a C++ compiler; and tracing alone."""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiling, "BACKEND", NO_KERNELS)
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "0")  # to be put back
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def breaks() -> list[str]:
    return [str(reason).splitlines()[0] for reason in counters["graph_break"]]


class Ran:
    """A few updates of egotiny."""

    def __init__(self, folder: Path, num_steps: int = 4, **axes: Any) -> None:
        trial = make_trial(folder, axes=axes, model={"name": "egotiny"}, evaluation={"num_questions": 6})
        self.work: Work = setup_here(trial)
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.widths: list[int] = []
        self.graphs: list[int] = []
        before = graphs()  # of other tests in this process
        for _ in range(num_steps):
            dealt = self.work.feed.next()
            with self.work.precision.compute(self.work.rank.device):
                loss = self.work.loss.compute(self.work.model, dealt.batch, dealt.pixel_values)
            set_learning_rate(self.work.optimizer, 1e-4)
            self.work.strategy.backward(loss / dealt.global_supervised_tokens)
            self.norms.append(self.work.strategy.update(1.0).item())
            self.losses.append(loss.item())
            self.widths.append(dealt.batch.input_ids.shape[1])
            self.graphs.append(graphs() - before)

    def trace(self) -> list[float]:
        return [*self.losses, *self.norms]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(tmp_path_factory.mktemp("off"))


def test_off_compiles_nothing(plain: Ran) -> None:
    assert plain.graphs == [0, 0, 0, 0]
    assert len(set(plain.widths)) == 4


@pytest.mark.parametrize(
    ("value", "loss", "backend", "expected"),
    [
        # One for the tower's blocks, one of any width for the LLM's.
        ("blocks", "plain", NO_KERNELS, [2, 2, 2, 2]),
        # The loss stays outside: as many supervised tokens as there may be, no graph more.
        ("whole", "chunked", NO_BACKWARD, [1, 1, 1, 1]),
    ],
)
def test_compiled_trains_the_same_in_few_graphs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plain: Ran,
    value: str,
    loss: str,
    backend: str,
    expected: list[int],
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", backend)
    ran = Ran(tmp_path, compile=value, loss=loss)
    assert ran.trace() == pytest.approx(plain.trace(), rel=1e-4)
    assert ran.graphs == expected
    assert breaks() == ([] if loss == "plain" else ["Skip calling `torch.compiler.disable()`d function"])
    assert ran.work.model.state_dict().keys() == plain.work.model.state_dict().keys()

    before = graphs(), dict(counters["frames"])
    for run, folder in ((ran, tmp_path / "a"), (plain, tmp_path / "b")):
        ask(run.work, TrialPaths(folder), "after")
    assert (graphs(), dict(counters["frames"])) == before  # a question compiles nothing
    answers = [TrialPaths(tmp_path / name).predictions("after").read_text() for name in ("a", "b")]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("kernel", ["sdpa", "sdpa_flash"])
def test_packed_rows_are_one_graph_of_any_width_and_of_any_lengths(tmp_path: Path, plain: Ran, kernel: str) -> None:
    ran = Ran(tmp_path, compile="blocks", padding="packed", attention=kernel)
    assert ran.trace() == pytest.approx(plain.trace(), rel=1e-4)
    assert (ran.graphs, breaks()) == ([2, 2, 2, 2], [])
    assert len(set(ran.widths)) > 1


def test_one_width_is_one_graph_and_recomputation_is_inside(tmp_path: Path, plain: Ran) -> None:
    ran = Ran(tmp_path, 2, compile="blocks", padding="max", checkpointing="selective")
    assert ran.trace() == pytest.approx([*plain.losses[:2], *plain.norms[:2]], rel=1e-4)
    assert (ran.graphs, breaks()) == ([2, 2], [])


def test_frozen_and_trained_blocks_are_all_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own limit of graphs is not met: beyond it, it would go on uncompiled."""
    monkeypatch.setattr(compiling, "BACKEND", NO_BACKWARD)
    axes = {"method": "last_blocks", "checkpointing": "every_2"}
    expected = Ran(tmp_path / "off", 3, **axes)
    ran = Ran(tmp_path / "blocks", 3, compile="blocks", **axes)
    assert ran.trace() == pytest.approx(expected.trace(), rel=1e-4)
    assert ran.graphs[1] == ran.graphs[2] <= 8
    assert torch._dynamo.config.recompile_limit == compiling.MAX_GRAPHS
    assert breaks() == []


def test_the_tower_s_hooks_stay_where_they_are_read(tmp_path: Path) -> None:
    """Only where the last hidden states are the features can the others be left out."""
    work = setup_here(make_trial(tmp_path))
    core: Any = work.model
    core.config.vision_feature_layer = -2
    compiling.blocks(work.model, {"padding": "dynamic"})
    assert not hasattr(core.model.vision_tower, "_output_capturing_hooks_installed")
    dealt = work.feed.next()
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        second_last = work.loss.compute(work.model, dealt.batch, dealt.pixel_values)
        core.config.vision_feature_layer = -1
        last = work.loss.compute(work.model, dealt.batch, dealt.pixel_values)
    assert second_last != last


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_inductor_trains_the_same(tmp_path: Path, plain: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    ran = Ran(tmp_path, compile="blocks", checkpointing="selective", loss="chunked")
    assert ran.trace() == pytest.approx(plain.trace(), rel=1e-3)
    # With a chunked loss the LLM's last block feeds forward where something is supervised: a graph of its own.
    assert (ran.graphs, breaks()) == ([3, 3, 3, 3], [])


def rank_without_kernels(*arguments: Any) -> None:
    compiling.BACKEND = NO_KERNELS  # type: ignore[misc]
    RANK_MAIN(*arguments)


RANK_MAIN = training_trials._rank_main


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("strategy", "value"),
    [("ddp", "whole"), ("fsdp", "blocks"), ("fsdp", "whole"), ("zero2", "blocks"), ("zero3", "blocks")],
)
def test_compiled_in_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, value: str) -> None:
    monkeypatch.setattr(training_trials, "_rank_main", rank_without_kernels)
    traces = []
    for number, axes in enumerate(({"strategy": "ddp"}, {"strategy": strategy, "compile": value})):
        folder = tmp_path / str(number)
        trial = make_trial(folder, axes={"gpus": 2, "micro_batch_size": 2} | axes, model={"name": "egotiny"})
        said, _ = run_ranks(trial, folder, timeout_s=250)[0]
        assert not isinstance(said, BaseException), said
        lines = read_lines(TrialPaths(folder).rank_steps(0), StepRecord)
        traces.append([number for line in lines for number in (line.loss, line.grad_norm)])
    assert len(traces[0]) == 8
    assert traces[1] == pytest.approx(traces[0], rel=1e-4, abs=1e-6)
