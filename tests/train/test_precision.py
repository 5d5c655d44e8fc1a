"""In which format what is kept, that it changes no number that it must not, and what a loss scaler does."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_trials import make_trial, run_here, setup_here

from egobench.errors import EnvironmentProblem
from egobench.models.parts import core, llm, llm_blocks, projector, tower
from egobench.records.measures import StepRecord
from egobench.records.store import TrialPaths, read_lines
from egobench.train import precision
from egobench.train.errors import Diverged
from egobench.train.precision import Precision
from egobench.train.recorder import MOST_SKIPPED
from egobench.train.setup import Work
from egobench.train.strategies.native import NativeStrategy

FULL, HALF = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def _process_wide() -> Iterator[None]:
    yield
    precision.FP32.apply(nn.Identity())


def work_of(folder: Path, **axes: Any) -> Work:
    return setup_here(make_trial(folder, axes=axes, model={"name": "egotiny"}))


def steps_of(folder: Path, num_steps: int = 3, **axes: Any) -> list[StepRecord]:
    trial = make_trial(folder, axes=axes, model={"name": "egotiny"}, recipe={"num_steps": num_steps})
    return run_here(trial, folder)[1]


def formats(part: nn.Module) -> dict[str, set[torch.dtype]]:
    """Return the formats of the matrices (and their biases), and of everything else."""
    matrices = {p for m in part.modules() if isinstance(m, nn.Linear | nn.Conv2d) for p in m.parameters(recurse=False)}
    own: dict[str, set[torch.dtype]] = {"matrices": set(), "others": set()}
    for parameter in part.parameters():
        own["matrices" if parameter in matrices else "others"].add(parameter.dtype)
    return own


@pytest.mark.parametrize(
    ("name", "kept", "multiplied"),
    [("fp32", FULL, FULL), ("tf32", FULL, FULL), ("bf16", FULL, HALF), ("bf16_pure", HALF, HALF),
     ("fp16", FULL, torch.float16)],
)  # fmt: skip
def test_what_is_trained_has_master_weights_and_frozen_matrices_do_not(
    tmp_path: Path, name: str, kept: torch.dtype, multiplied: torch.dtype
) -> None:
    work = work_of(tmp_path, method="freeze", precision=name)
    assert formats(tower(work.model)) == {"matrices": {multiplied}, "others": {kept}}
    assert formats(projector(work.model)) == {"matrices": {kept}, "others": {kept}}
    assert {p.dtype for p in llm(work.model).parameters()} == {kept}
    with work.precision.compute(work.rank.device):
        product = projector(work.model).linear_1(torch.ones(1, 512, dtype=kept))
    assert product.dtype == multiplied
    kinds = {one.dtype for state in work.optimizer.state.values() for one in state.values() if one.dim()}
    assert kinds <= {kept}


def test_frozen_embeddings_stay_and_adapters_are_master_weights(tmp_path: Path) -> None:
    work = work_of(tmp_path, method="lora", precision="bf16")
    left_alone = ("norm", "embed_tokens", "lambda", "cls_token", "position_embeddings")
    for name, parameter in work.model.named_parameters():
        is_rounded = not parameter.requires_grad and not any(word in name for word in left_alone)
        assert parameter.dtype == (HALF if is_rounded else FULL), name


def test_a_head_that_is_the_embedding_stays_with_it() -> None:
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4)).requires_grad_(False)
    model[1].weight = model[0].weight
    precision.BF16.cast(model)
    assert model[1].weight is model[0].weight
    assert [parameter.dtype for parameter in model.parameters()] == [FULL, HALF, HALF]


def test_buffers_are_never_rounded(tmp_path: Path) -> None:
    exact = work_of(tmp_path / "a", precision="fp32")
    pure = work_of(tmp_path / "b", precision="bf16_pure")
    frequencies = llm(pure.model).rotary_emb.inv_freq
    assert torch.equal(frequencies, llm(exact.model).rotary_emb.inv_freq)
    assert not torch.equal(frequencies, frequencies.to(HALF).float())


@pytest.mark.parametrize("method", ["freeze", "last_blocks", "lora"])
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_16_bit_copies_of_frozen_matrices_change_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, name: str
) -> None:
    axes = {"method": method, "precision": name, "micro_batch_size": 1}
    rounded = steps_of(tmp_path / "a", **axes)
    monkeypatch.setattr(Precision, "matrices", FULL)  # autocast rounds them at every use
    assert (
        tower(work_of(tmp_path / "c", method=method, precision=name).model).encoder.layer[0].mlp.fc1.weight.dtype
        == FULL
    )
    exact = steps_of(tmp_path / "b", **axes)
    assert [(step.loss, step.grad_norm) for step in rounded] == [(step.loss, step.grad_norm) for step in exact]


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16", "bf16_pure"])
def test_it_learns(tmp_path: Path, name: str) -> None:
    trial = make_trial(tmp_path, axes={"precision": name}, data={"num_train": 8}, recipe={"num_steps": 8})
    steps = run_here(trial, tmp_path)[1]
    assert steps[-1].loss < 0.9 * steps[0].loss
    # A loss scale begins too high for a model that knows nothing, and finds its place.
    assert sum(step.skipped for step in steps) <= (4 if name == "fp16" else 0)


def test_the_switches_of_the_process_follow_the_last_trial(tmp_path: Path) -> None:
    for name, matmul, convolution in (("tf32", "high", True), ("fp32", "highest", False), ("bf16", "highest", False)):
        work_of(tmp_path, precision=name)
        assert torch.get_float32_matmul_precision() == matmul
        assert torch.backends.cudnn.allow_tf32 is convolution


@pytest.fixture
def begin_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the loss scale begin elsewhere."""

    def begin(scale: float) -> None:
        real = NativeStrategy.__init__

        def init(self: NativeStrategy, *arguments: Any) -> None:
            real(self, *arguments)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

        monkeypatch.setattr(NativeStrategy, "__init__", init)

    return begin


def test_a_step_that_overflows_is_skipped_and_said_so(tmp_path: Path, begin_at: Any) -> None:
    plain = steps_of(tmp_path / "a", precision="fp16", num_steps=1, micro_batch_size=1)
    begin_at(2.0**22)
    steps = steps_of(tmp_path / "b", precision="fp16", num_steps=6, micro_batch_size=1)
    assert steps[0].skipped and not all(step.skipped for step in steps)
    for step in steps:
        assert math.isfinite(step.grad_norm) != step.skipped
        assert math.isfinite(step.loss)
    # What was skipped changed nothing: the model is still the first one.
    assert steps[0].loss == plain[0].loss
    work = work_of(tmp_path / "c", precision="fp16")
    begun = {name: one.clone() for name, one in work.model.state_dict().items()}
    dealt = work.feed.next()
    with work.precision.compute(work.rank.device):
        work.strategy.backward(work.loss.compute(work.model, dealt.batch, dealt.pixel_values))
    assert not math.isfinite(work.strategy.update(1.0))
    assert all(torch.equal(begun[name], one) for name, one in work.model.state_dict().items())


def test_a_trial_that_skips_every_step_has_diverged(tmp_path: Path, begin_at: Any) -> None:
    begin_at(2.0**60)
    with pytest.raises(Diverged, match="step 2: gradient norm is not finite"):
        steps_of(tmp_path, precision="fp16", num_steps=3)
    assert [step.skipped for step in read_lines(TrialPaths(tmp_path).rank_steps(0), StepRecord)] == [True] * 3


def test_a_loss_scale_that_no_longer_helps_has_diverged(tmp_path: Path, begin_at: Any) -> None:
    begin_at(2.0**60)
    with pytest.raises(Diverged) as caught:
        steps_of(tmp_path, precision="fp16", num_steps=MOST_SKIPPED + 4, micro_batch_size=1)
    assert caught.value.step == MOST_SKIPPED - 1


def test_other_precisions_do_not_forgive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeStrategy, "clip", lambda self, max_norm: torch.tensor(float("inf")))
    with pytest.raises(Diverged, match="step 0: gradient norm"):
        steps_of(tmp_path, precision="bf16")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "FP8", dataclasses.replace(precision.FP8, emulates_float8=True))


@pytest.mark.parametrize("method", ["full", "freeze", "lora", "dora"])
@pytest.mark.usefixtures("emulated")
def test_fp8_computes_the_blocks_of_the_llm(tmp_path: Path, method: str) -> None:
    from torchao.float8.float8_linear import Float8Linear

    work = work_of(tmp_path, method=method, precision="fp8")
    converted = {name for name, module in core(work.model).named_modules() if isinstance(module, Float8Linear)}
    base = ".base_layer" if method in ("lora", "dora") else ""
    assert len(converted) == 7 * len(llm_blocks(work.model))
    assert all("language_model.layers." in name and name.endswith("_proj" + base) for name in converted)
    for name in converted:
        config = core(work.model).get_submodule(name).config
        assert config.cast_config_input.short_str() == "dyn_axs_e4m3" and config.pad_inner_dim
    # Master weights where they are trained.
    kept = FULL if method in ("full", "freeze") else HALF
    assert {core(work.model).get_submodule(name).weight.dtype for name in converted} == {kept}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.usefixtures("emulated")
def test_fp8_learns_nearly_what_bf16_learns(tmp_path: Path, method: str) -> None:
    losses = {}
    for name in ("bf16", "fp8"):
        axes = {"precision": name, "method": method, "micro_batch_size": 8}
        data, evaluation = {"num_train": 8}, {"num_questions": 2}
        folder = tmp_path / name
        trial = make_trial(folder, axes=axes, data=data, evaluation=evaluation, recipe={"num_steps": 6})
        summary, steps = run_here(trial, folder)
        assert summary.after is not None
        losses[name] = [step.loss for step in steps]
    assert losses["fp8"] == pytest.approx(losses["bf16"], rel=0.02)
    assert losses["fp8"] != losses["bf16"]
    assert losses["fp8"][-1] < 0.97 * losses["fp8"][0]


@pytest.mark.usefixtures("emulated")
def test_fp8_leaves_what_does_not_fit_its_tiles(tmp_path: Path) -> None:
    from torchao.float8.float8_linear import Float8Linear

    work = work_of(tmp_path, precision="fp32")
    block = llm_blocks(work.model)[0]
    block.mlp.up_proj = nn.Linear(128, 383)
    precision.FP8.apply(work.model)
    assert type(block.mlp.up_proj) is nn.Linear
    assert isinstance(block.mlp.gate_proj, Float8Linear)


def test_a_missing_torchao_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("torchao")] + ["torchao.float8", "torchao"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EnvironmentProblem, match=r"precision 'fp8' needs torchao: pip install 'egobench\[torchao\]'"):
        work_of(tmp_path, precision="fp8")
