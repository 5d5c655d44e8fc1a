"""Adapters: where they go, that only they are trained, and that they can be merged; 4-bit matrices under them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_trials import ROUNDING, make_trial, run_here, setup_here

from egobench.errors import EnvironmentProblem, InvalidInput
from egobench.models.internvl import EGOTINY, FAMILY
from egobench.models.parts import core, llm_blocks, projector, tower
from egobench.train import adapters
from egobench.train.methods import count_parameters
from egobench.train.setup import Work

ADAPTED = ("lora", "dora", "qlora")
MATRICES_PER_BLOCK = 7


def work_of(folder: Path, **axes: Any) -> Work:
    return setup_here(make_trial(folder, axes=axes, model={"name": "egotiny"}))


def plain_model() -> Any:
    return FAMILY.from_pretrained(EGOTINY, dtype=torch.float32)


def train(work: Work, num_steps: int) -> list[float]:
    """Train on one batch; return its losses."""
    dealt, losses = work.feed.next(), []
    for group in work.optimizer.param_groups:
        group["lr"] = 3e-3
    for _ in range(num_steps):
        with work.precision.compute(work.rank.device):
            loss = work.loss.compute(work.model, dealt.batch, dealt.pixel_values) / dealt.global_supervised_tokens
        work.strategy.backward(loss)
        work.strategy.update(1.0)
        losses.append(loss.item())
    return losses


def logits_of(work: Work, model: Any) -> torch.Tensor:
    dealt = setup_here(work.trial).feed.next()
    with torch.no_grad(), work.precision.compute(work.rank.device):
        logits: torch.Tensor = model.eval()(**dealt.batch.inputs(), pixel_values=dealt.pixel_values).logits
    return logits


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """4-bit weights read as numbers may be NaN, which nothing equals."""
    return tensor.detach().clone().view(torch.uint8)


def adapted_names(model: nn.Module) -> set[str]:
    return {name for name, module in core(model).named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize("method", ADAPTED)
def test_only_adapters_and_projector_are_trained(tmp_path: Path, method: str) -> None:
    work = work_of(tmp_path, method=method)
    before = {name: bits_of(one) for name, one in work.model.named_parameters()}
    train(work, 3)
    changed = {name for name, one in work.model.named_parameters() if not torch.equal(before[name], bits_of(one))}
    assert changed == {name for name, one in work.model.named_parameters() if one.requires_grad}
    assert changed == {
        name
        for name in before
        if ".lora_" in name or (".multi_modal_projector." in name and ".original_module." not in name)
    }
    assert len(adapted_names(work.model)) == MATRICES_PER_BLOCK * len(llm_blocks(work.model))


@pytest.mark.parametrize(
    ("method", "precision"),
    [*((method, precision) for method in ADAPTED for precision in ("fp32", "bf16")), ("qlora", "fp16"),
     ("lora", "bf16_pure"), ("dora", "bf16_pure")],
)  # fmt: skip
def test_it_learns_from_where_the_model_is(tmp_path: Path, method: str, precision: str) -> None:
    full = train(work_of(tmp_path, precision=precision), 1)[0]
    losses = train(work_of(tmp_path, method=method, precision=precision), 6)
    # Adapters begin as zero; rounding to 4 bits is another model.
    assert losses[0] == pytest.approx(full, rel=0.1 if method == "qlora" else 1e-6)
    assert losses[-1] < 0.5 * losses[0]


def test_a_frozen_projector_stays(tmp_path: Path) -> None:
    work = work_of(tmp_path, method="lora", projector="frozen")
    assert not any(parameter.requires_grad for parameter in projector(work.model).parameters())
    trained = work_of(tmp_path, method="lora", projector="trained")
    own = sum(parameter.numel() for parameter in projector(plain_model()).parameters())
    assert trained.num_trainable_parameters - work.num_trainable_parameters == own
    # PEFT's frozen copy of the projector is no part of the model.
    assert trained.num_parameters == work.num_parameters


@pytest.mark.parametrize(
    ("targets", "projector", "number"),
    [
        ("llm", "trained", 3 * MATRICES_PER_BLOCK),
        ("all-linear", "trained", 3 * MATRICES_PER_BLOCK + 3 * 6),
        ("all-linear", "frozen", 3 * MATRICES_PER_BLOCK + 3 * 6 + 2),
        (r".*language_model.*\.[qv]_proj", "trained", 6),
        (r"model\.vision_tower\..*\.fc[12]", "frozen", 6),
        ("model.language_model.layers.0.mlp.up_proj", "frozen", 1),
    ],
)
def test_targets(tmp_path: Path, targets: str, projector: str, number: int) -> None:
    work = work_of(tmp_path, method="lora", lora_targets=targets, projector=projector)
    names = adapted_names(work.model)
    assert len(names) == number
    if targets not in ("llm", "all-linear"):
        assert all(re.fullmatch(targets, name) for name in names)
    assert not any("lm_head" in name for name in names)
    assert any("vision_tower" in name for name in names) == (targets == "all-linear" or "vision" in targets)
    losses = train(work, 6)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("q_proj", r"'q_proj' matches no linear layer.* such as model\.vision_tower\..*, model\.language_model"),
        ("lm_head", "'lm_head' matches no linear layer that can have an adapter"),
        (r".*norm.*", "matches no linear layer"),
        ("(", r"'\(' is no regular expression \(.*\); allowed: llm, all-linear, a regular expression"),
    ],
)
def test_targets_that_cannot_be_meant(tmp_path: Path, targets: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=rf"axes\.lora_targets: .*{words}"):
        work_of(tmp_path, method="lora", lora_targets=targets)


def test_rank_and_alpha(tmp_path: Path) -> None:
    work = work_of(tmp_path, method="lora", lora_rank=4, lora_alpha=6.0, projector="frozen")
    layers = [module for module in work.model.modules() if hasattr(module, "lora_A")]
    assert {layer.lora_A["default"].weight.shape[0] for layer in layers} == {4}
    assert {layer.scaling["default"] for layer in layers} == {6.0 / 4}
    shapes = [layer.base_layer.weight.shape for layer in layers]
    assert work.num_trainable_parameters == sum(4 * (rows + columns) for rows, columns in shapes)
    assert len(list(work.model.modules())) and not any(
        isinstance(module, nn.Dropout) and module.p for module in work.model.modules()
    )


@pytest.mark.parametrize(
    ("method", "axes", "atol"),
    [
        ("lora", {}, ROUNDING),
        ("lora", {"lora_targets": "all-linear", "projector": "frozen"}, ROUNDING),
        ("dora", {}, ROUNDING),
        ("qlora", {}, ROUNDING),
        ("qlora", {"lora_targets": r"model\.(vision_tower.*fc1|language_model.*q_proj)"}, ROUNDING),
        ("lora", {"precision": "bf16"}, 0.4),
        ("qlora", {"precision": "bf16"}, 0.4),
    ],
)
def test_merged_it_is_a_plain_model_that_answers_the_same(
    tmp_path: Path, method: str, axes: dict[str, Any], atol: float
) -> None:
    work = work_of(tmp_path, method=method, **axes)
    untrained = logits_of(work, work.model)
    train(work, 6)
    adapted = logits_of(work, work.model)
    merged = adapters.merge(work.strategy.unwrap(work.model))
    plain = plain_model()
    assert type(merged) is type(plain)
    assert {name: one.shape for name, one in merged.state_dict().items()} == {
        name: one.shape for name, one in plain.state_dict().items()
    }
    assert not any(type(module).__name__ == "Linear4bit" for module in merged.modules())
    apart = (logits_of(work, merged).float() - adapted.float()).abs().max()
    assert apart <= atol
    assert (adapted.float() - untrained.float()).abs().max() > 5 * max(apart, atol)  # there was something to merge
    merged.save_pretrained(tmp_path / "merged")
    again = FAMILY.from_pretrained(tmp_path / "merged", dtype=torch.float32).state_dict()
    assert all(torch.equal(again[name], one.float()) for name, one in merged.state_dict().items())


def test_a_model_without_adapters_merges_to_itself() -> None:
    model = plain_model()
    assert adapters.merge(model) is model


def kinds(part: nn.Module) -> set[str]:
    return {type(module).__name__ for module in part.modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_the_matrices_of_the_llm_are_in_4_bits(tmp_path: Path, precision: str) -> None:
    import bitsandbytes

    work = work_of(tmp_path, method="qlora", precision=precision, projector="frozen")
    plain = plain_model()
    compute = work.precision.autocast or torch.float32
    assert kinds(tower(work.model)) == kinds(projector(work.model)) == {"Linear"}
    assert kinds(core(work.model).lm_head) == {"Linear"}
    num_bytes = num_numbers = 0
    for block, original in zip(llm_blocks(work.model), llm_blocks(plain), strict=True):
        for name, linear in original.named_modules():
            if isinstance(linear, nn.Linear):
                layer = block.get_submodule(name).base_layer
                assert isinstance(layer, bitsandbytes.nn.Linear4bit)
                assert layer.compute_dtype == layer.weight.dtype == compute  # stored as what FSDP sends
                state = layer.weight.quant_state
                assert state.quant_type == "nf4" and state.nested
                kept = bitsandbytes.functional.dequantize_4bit(layer.weight, state).float()
                error = (kept - linear.weight).norm() / linear.weight.norm()
                assert 0.05 < error < 0.12  # 4 bits; anything less was never rounded
                num_bytes += layer.weight.untyped_storage().nbytes()
                num_numbers += linear.weight.numel()
    assert num_bytes == num_numbers / 2
    assert all(one.dtype == torch.float32 for name, one in work.model.named_parameters() if "norm" in name)


def test_counts_are_of_numbers_not_of_bytes(tmp_path: Path) -> None:
    plain, packed = (work_of(tmp_path, method=method) for method in ("lora", "qlora"))
    assert packed.num_parameters == plain.num_parameters
    assert packed.num_trainable_parameters == plain.num_trainable_parameters
    assert sum(parameter.numel() for parameter in packed.model.parameters()) < plain.num_parameters
    own = sum(one.numel() for name, one in plain.model.named_parameters() if ".lora_" in name)
    assert plain.num_parameters == count_parameters(plain_model())[0] + own


def test_4_bits_are_trained_after_they_have_answered(tmp_path: Path) -> None:
    """On some CPUs bitsandbytes repacks what answers into a form that has no backward pass."""
    evaluation = {"num_questions": 4, "before": True}
    trial = make_trial(tmp_path, axes={"method": "qlora"}, model={"name": "egotiny"}, evaluation=evaluation)
    asked, steps = run_here(trial, tmp_path)
    trial = make_trial(tmp_path / "b", axes={"method": "qlora"}, model={"name": "egotiny"})
    assert [step.loss for step in run_here(trial, tmp_path / "b")[1]] == [step.loss for step in steps]
    assert asked.before is not None and asked.after is not None
    assert asked.before.em > 50  # egotiny still knows its domain in 4 bits


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_what_is_saved_is_loaded_again(tmp_path: Path, method: str) -> None:
    work = work_of(tmp_path, method=method)
    train(work, 1)
    work.strategy.save(tmp_path / "checkpoint")
    saved = {name: bits_of(one) for name, one in work.model.named_parameters()}
    train(work, 2)
    assert any(not torch.equal(saved[name], bits_of(one)) for name, one in work.model.named_parameters())
    fresh = work_of(tmp_path / "b", method=method)
    for one in (work, fresh):
        one.strategy.load(tmp_path / "checkpoint")
        assert all(torch.equal(saved[name], bits_of(tensor)) for name, tensor in one.model.named_parameters())


def test_inputs_of_adapters_are_not_cast_forth_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(folder: Path) -> tuple[list[float], int]:
        work, sizes = work_of(folder, method="lora", precision="bf16"), dict[int, int]()

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = train(work, 1)
        return losses + train(work, 2), sum(sizes.values())

    losses, kept_bytes = run(tmp_path / "a")
    monkeypatch.setattr(adapters, "_keep_inputs", lambda model: None)
    same, more_bytes = run(tmp_path / "b")
    assert losses == same
    assert kept_bytes < more_bytes


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_pure"])
def test_the_lengths_of_dora_begin_as_those_of_the_rows_in_use(tmp_path: Path, precision: str) -> None:
    work = work_of(tmp_path, method="dora", precision=precision)
    layers = [module for module in work.model.modules() if hasattr(module, "lora_A")]
    assert layers
    for layer in layers:
        rows = layer.base_layer.weight.to(work.precision.parameters)
        assert torch.equal(layer.lora_magnitude_vector["default"].weight, torch.linalg.norm(rows, dim=1))


@pytest.mark.parametrize(("method", "package"), [("lora", "peft"), ("qlora", "bitsandbytes")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentProblem, match=rf"method '{method}' needs {package}: pip install 'egobench\["):
        work_of(tmp_path, method=method)
