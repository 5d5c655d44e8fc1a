from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from training_trials import make_trial, one_rank, run_here, run_keeping_weights, setup_here, weights_apart
from transformers.models.internvl.modeling_internvl import InternVLVisionMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from egobench.errors import InvalidInput
from egobench.records.provenance import Provenance
from egobench.records.store import TrialPaths, read_document
from egobench.spec.axes import PRECISIONS


def test_training_learns(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, recipe={"num_steps": 16}, data={"num_train": 8}, axes={"micro_batch_size": 8})
    summary, steps = run_here(trial, tmp_path)
    assert [step.step for step in steps] == list(range(16))
    assert steps[-1].loss < 0.6 * steps[0].loss
    assert summary.num_trainable_parameters == summary.num_parameters > 1_000_000
    assert summary.peak_allocated_bytes is None
    # Not more than nothing where this process had freed as much before: tests/probes measure what must show.
    assert summary.peak_rss_growth_bytes is not None and 0 <= summary.peak_rss_growth_bytes < 2**31


def test_a_trial_leaves_provenance_and_every_prediction(tmp_path: Path) -> None:
    evaluation = {"num_questions": 6, "before": True}
    trial = make_trial(tmp_path, recipe={"num_steps": 2}, evaluation=evaluation, model={"name": "egotiny"})
    summary, _ = run_here(trial, tmp_path)
    paths = TrialPaths(tmp_path)
    provenance = read_document(paths.provenance, Provenance)
    assert provenance is not None
    assert provenance.num_train == 32
    assert provenance.data_digest and provenance.model_digest
    assert summary.before is not None and summary.after is not None
    for when in ("before", "after"):
        lines = [json.loads(line) for line in paths.predictions(when).read_text().splitlines()]
        assert len({line["id"] for line in lines}) == 6
        assert set(lines[0]) == {"id", "question", "prediction", "references", "em", "f1", "category"}
        answers = getattr(summary, when)
        assert answers.em == pytest.approx(100 * sum(line["em"] for line in lines) / 6)


@pytest.mark.parametrize("padding", ["max", "dynamic"])
def test_tokens_add_up_to_the_tensors(tmp_path: Path, padding: str) -> None:
    work = setup_here(make_trial(tmp_path, axes={"padding": padding}))
    for _ in range(3):
        batch = work.feed.next().batch
        assert batch.image_tokens + batch.text_tokens + batch.padding_tokens == batch.input_ids.numel()
        assert batch.image_tokens == int((batch.input_ids == 5).sum()) == 4 * 16
        assert batch.supervised_tokens == int((batch.labels != -100).sum())
        assert batch.input_ids.shape[1] == 96 or padding == "dynamic"


def test_padding_changes_no_loss(tmp_path: Path) -> None:
    _, longest = run_here(make_trial(tmp_path / "a", axes={"padding": "dynamic"}), tmp_path / "a")
    _, most = run_here(make_trial(tmp_path / "b", axes={"padding": "max"}), tmp_path / "b")
    assert [step.loss for step in longest] == pytest.approx([step.loss for step in most], rel=1e-4)
    assert most[0].padding_tokens > longest[0].padding_tokens


def gradients(tmp_path: Path, **axes: str) -> tuple[float, dict[str, torch.Tensor]]:
    work = setup_here(make_trial(tmp_path, axes=axes))
    dealt = work.feed.next()
    with work.precision.compute(work.rank.device):
        loss = work.loss.compute(work.model, dealt.batch, dealt.pixel_values) / dealt.global_supervised_tokens
    loss.backward()
    return loss.item(), {name: p.grad for name, p in work.model.named_parameters() if p.grad is not None}


def test_checkpointing_recomputes_every_block_and_gives_the_same_gradients(tmp_path: Path) -> None:
    calls: dict[str, int] = {}
    results = {}
    for name in ("none", "full"):
        calls[name] = 0

        def count(module: object, *_: object, name: str = name) -> None:
            calls[name] += isinstance(module, InternVLVisionMLP | Qwen2MLP)

        # Before the forward: recomputation stops as soon as it has what the backward pass needs.
        hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
        try:
            results[name] = gradients(tmp_path, checkpointing=name)
        finally:
            hook.remove()
    assert calls == {"none": 6, "full": 12}  # three blocks of the tower, three of the LLM
    (loss, kept), (again, recomputed) = results["none"], results["full"]
    assert again == pytest.approx(loss, rel=1e-6)
    assert all(torch.allclose(recomputed[name], kept[name], atol=1e-6) for name in kept)


def test_attention_kernels_agree(tmp_path: Path) -> None:
    (eager, a), (sdpa, b) = gradients(tmp_path, attention="eager"), gradients(tmp_path, attention="sdpa")
    assert eager == pytest.approx(sdpa, rel=1e-5)
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


def test_bf16_computes_close_to_fp32_and_keeps_fp32_weights(tmp_path: Path) -> None:
    exact, _ = gradients(tmp_path, precision="fp32")
    rounded, grads = gradients(tmp_path, precision="bf16")
    assert rounded == pytest.approx(exact, rel=2e-2)
    assert rounded != exact
    assert {grad.dtype for grad in grads.values()} == {torch.float32}


def test_fused_and_foreach_adamw_agree(tmp_path: Path) -> None:
    ends = []
    for name in ("adamw", "adamw_fused"):
        trial = make_trial(tmp_path / name, axes={"optimizer": name}, recipe={"num_steps": 2, "weight_decay": 0.1})
        ends.append(run_keeping_weights(trial, tmp_path / name, one_rank())[1])
    assert weights_apart(*ends) <= 1e-5


def test_only_matrices_are_decayed(tmp_path: Path) -> None:
    work = setup_here(make_trial(tmp_path, recipe={"weight_decay": 0.1}))
    decayed = {id(p) for group in work.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in work.model.named_parameters():
        is_matrix = parameter.ndim == 2 or name.endswith("projection.weight")
        assert (id(parameter) in decayed) == is_matrix, name


def test_a_name_without_a_builder_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRECISIONS, "fp4", None)
    with pytest.raises(
        InvalidInput, match=r"axes\.precision: 'fp4' cannot run yet; allowed: bf16, bf16_pure, fp16, fp32"
    ):
        setup_here(make_trial(tmp_path, axes={"precision": "fp4"}))


def test_pictures_of_the_wrong_size_are_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="image_px: 32 px, but egotiny sees 64 px"):
        setup_here(make_trial(tmp_path, axes={"image_px": 32}, model={"name": "egotiny"}))


def test_drawn_weights_see_pictures_of_any_size(tmp_path: Path) -> None:
    work = setup_here(make_trial(tmp_path, axes={"image_px": 32}))
    dealt = work.feed.next()
    assert dealt.pixel_values.shape[-1] == 32
    assert dealt.batch.image_tokens == dealt.batch.num_samples * 4


def test_a_step_without_weights_has_finite_numbers_only_where_it_must(tmp_path: Path) -> None:
    _, steps = run_here(make_trial(tmp_path, recipe={"num_steps": 1}), tmp_path)
    assert all(math.isfinite(value) for value in steps[0].model_dump().values() if isinstance(value, float))
