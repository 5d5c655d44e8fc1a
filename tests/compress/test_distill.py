"""A student in training: its loss is that of plain models side by side, whatever is matched or cached."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from distilling import copied_teacher, how_of, losses_of, run_student, set_up, trial_of
from torch.nn import functional
from training_trials import one_rank
from transformers import AutoModelForImageTextToText

from egobench.compress import distill, matching, teacher_cache
from egobench.compress.matching import token_weights
from egobench.compress.teacher_cache import blocks_of
from egobench.errors import InvalidInput
from egobench.models.internvl import EGOTINY, build
from egobench.models.parts import core, head
from egobench.probes.flops import flop_meter
from egobench.records.store import TrialPaths
from egobench.spec.distillation import Distillation
from egobench.spec.keep import Save
from egobench.train.feed import Dealt
from egobench.train.losses import OWN, targets_of
from egobench.train.methods import count_parameters
from egobench.train.setup import Work

CPU = torch.device("cpu")


def gradients(work: Work, dealt: Dealt | None = None) -> tuple[float, dict[str, torch.Tensor]]:
    dealt = dealt or work.feed.next()
    with work.precision.compute(work.rank.device):
        loss = work.loss.compute(work.model, dealt.batch, dealt.pixel_values) / dealt.global_supervised_tokens
    loss.backward()
    found = {name: one.grad for name, one in work.model.named_parameters() if one.grad is not None}
    return loss.item(), found


@pytest.mark.parametrize("loss", ["plain", "chunked"])
def test_the_meter_counts_the_distillation_loss_whatever_the_axis_says(loss: str, tmp_path: Path) -> None:
    work = set_up(how_of(), trial_of(tmp_path, {"loss": loss}))
    kept = dict(trial_of(tmp_path).cell.axes)
    as_chunked, as_plain = (flop_meter(work.model, {**kept, "loss": one}) for one in ("chunked", "plain"))
    assert work.flops == as_chunked != as_plain


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-4) -> None:
    assert one.keys() == other.keys()
    for name in one:
        if not name.endswith("k_proj.bias"):  # softmax cancels it: its gradient is rounding noise
            assert (one[name] - other[name]).norm() <= tolerance * one[name].norm() + 1e-7, name


def by_hand(work: Work, dealt: Dealt, how: Distillation, *, attention: str = "sdpa") -> torch.Tensor:
    """Run student and teacher as transformers' own models, and compare all that they return."""
    student = core(work.model)
    teacher: Any = build({"path": str(EGOTINY)}, attention=attention, dtype=torch.float32, device=CPU, seed=0).model
    given = {**dealt.batch.inputs(), "pixel_values": dealt.pixel_values, "use_cache": False}
    asked = {"output_hidden_states": bool(how.hidden), "output_attentions": bool(how.attention)}
    with torch.no_grad():
        other = teacher(**given, **asked)
    own, targets = student(**given, **asked), targets_of(dealt.batch)
    logits, wanted = (made.logits.flatten(0, 1)[targets.positions] for made in (own, other))
    log_p, log_q = ((one / how.temperature).log_softmax(-1) for one in (wanted, logits))
    loss = how.weight * how.temperature**2 * (log_p.exp() * (log_p - log_q)).sum()
    loss = loss + how.cross_entropy * functional.cross_entropy(logits, targets.tokens, reduction="sum")
    weights = token_weights(dealt.batch)
    pairs = how.matched_layers
    for index, (mine, theirs) in enumerate(pairs):
        if how.hidden:
            # transformers lists the embeddings first, and the last stream behind its norm.
            stream, aim = own.hidden_states[mine + 1], other.hidden_states[theirs + 1]
            apart = (getattr(student, OWN)[index](stream) - aim).square().sum(-1) / aim.square().sum(-1)
            loss = loss + how.hidden / len(pairs) * (apart * weights).sum()
        if how.attention:
            looks, wanted = own.attentions[mine].mean(1), other.attentions[theirs].mean(1)
            apart = (torch.xlogy(wanted, wanted) - wanted * looks.clamp(min=1e-9).log()).sum(-1)
            loss = loss + how.attention / len(pairs) * (apart * weights).sum()
    return loss / dealt.global_supervised_tokens


MATCHED = {"cross_entropy": 0.5, "temperature": 2.0, "hidden": 0.3, "matched_layers": [[0, 0], [0, 1]]}


@pytest.mark.parametrize(
    ("said", "axes"),
    [
        ({}, {}),
        ({"cross_entropy": 0.5, "temperature": 2.0}, {"checkpointing": "full"}),
        (MATCHED, {}),
        (MATCHED | {"attention": 0.7}, {"attention": "eager"}),
        (MATCHED | {"attention": 0.7}, {"attention": "eager", "checkpointing": "full"}),
    ],
)
def test_loss_and_gradients_are_those_of_plain_models(
    tmp_path: Path, said: dict[str, Any], axes: dict[str, Any]
) -> None:
    how = how_of(**said)
    work = set_up(how, trial_of(tmp_path, axes))
    dealt = work.feed.next()
    expected = by_hand(work, dealt, how, attention=str(work.trial.cell.axes["attention"]))
    expected.backward()
    slopes = {name: one.grad.clone() for name, one in work.model.named_parameters() if one.grad is not None}
    work.model.zero_grad()
    loss, found = gradients(work, dealt)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    close(slopes, found)
    assert any(name.startswith(OWN) for name in found) == bool(how.hidden)


def test_the_teacher_is_no_part_of_the_student(tmp_path: Path) -> None:
    work = set_up(how_of(hidden=1.0), trial_of(tmp_path))
    held = sum(one.numel() for one in work.model.parameters())
    own = sum(one.numel() for one in getattr(core(work.model), OWN).parameters())
    assert own == 2 * 128 * 128
    assert work.num_parameters == held - own == count_parameters(work.model)[0] < 0.7 * 1_302_656
    optimized = {parameter for group in work.optimizer.param_groups for parameter in group["params"]}
    assert optimized == set(work.model.parameters())


@pytest.mark.parametrize("precision", ["bf16", "bf16_pure", "fp16"])
def test_precisions(tmp_path: Path, precision: str) -> None:
    how = how_of(cross_entropy=0.3, hidden=0.2, temperature=2.0)
    exact, _ = gradients(set_up(how, trial_of(tmp_path)))
    loss, found = gradients(set_up(how, trial_of(tmp_path, {"precision": precision})))
    assert loss == pytest.approx(exact, rel=3e-2)
    assert {one.dtype for one in found.values()} == {torch.bfloat16 if precision == "bf16_pure" else torch.float32}


@pytest.mark.parametrize("padding", ["max", "packed"])
def test_padding_changes_nothing(tmp_path: Path, padding: str) -> None:
    how = how_of(cross_entropy=0.3, hidden=0.2)
    loss, expected = gradients(set_up(how, trial_of(tmp_path)))
    other, found = gradients(set_up(how, trial_of(tmp_path, {"padding": padding})))
    assert other == pytest.approx(loss, rel=1e-5)
    close(expected, found, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("compiled", "hidden"), [("blocks", 0.2), ("whole", 0.0)])
def test_a_compiled_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: str, hidden: float) -> None:
    """Traced, and run without a compiler; listeners are outside of what is traced."""
    monkeypatch.setattr("egobench.train.compile.BACKEND", "eager")
    how = how_of(cross_entropy=0.3, hidden=hidden)
    loss, expected = gradients(set_up(how, trial_of(tmp_path)))
    other, found = gradients(set_up(how, trial_of(tmp_path, {"compile": compiled})))
    assert other == pytest.approx(loss, rel=1e-5)
    close(expected, found, 1e-3)


def test_a_student_with_adapters(tmp_path: Path) -> None:
    """What a method freezes stays as the student's start; projections are trained all the same."""
    trial = trial_of(tmp_path, {"method": "lora"}).model_copy(update={"save": Save(export="merged")})
    run_student(how_of(hidden=0.2), trial, tmp_path, one_rank())
    exported = AutoModelForImageTextToText.from_pretrained(TrialPaths(tmp_path).model)
    start = set_up(how_of(), trial_of(tmp_path)).model
    state, began = exported.state_dict(), start.state_dict()
    assert state.keys() == began.keys()
    changed = {name for name in state if not torch.equal(state[name], began[name])}
    assert any("q_proj" in name for name in changed) and not any("vision_tower" in name for name in changed)


def test_every_sample_weighs_as_its_supervised_tokens(tmp_path: Path) -> None:
    for padding in ("dynamic", "packed"):
        batch = set_up(how_of(), trial_of(tmp_path, {"padding": padding})).feed.next().batch
        weights = token_weights(batch)
        assert weights.sum().item() == pytest.approx(batch.supervised_tokens)
        assert (weights > 0).sum() == sum(batch.lengths)


def test_a_student_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    how = how_of(divergence="jsd", hidden=0.1)
    trial = trial_of(tmp_path, recipe={"num_steps": 12, "learning_rate": 2e-3})
    trial = trial.model_copy(update={"save": Save(export="merged")})
    _, weights = run_student(how, trial, tmp_path, one_rank())
    losses = [loss for loss, _ in losses_of(tmp_path)]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    # The export is the student alone.
    assert any(name.startswith(OWN) for name in weights)
    model = AutoModelForImageTextToText.from_pretrained(TrialPaths(tmp_path).model)
    state = model.state_dict()
    assert state.keys() == {name for name in weights if not name.startswith(OWN)}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in state.items())
    assert model.config.text_config.num_hidden_layers == 2


def test_a_student_of_another_family_trains(tmp_path: Path) -> None:
    how = how_of(student={"family": "llama", "layers": 1, "hidden": 64, "ffn": 128}, cross_entropy=0.5)
    run_student(how, trial_of(tmp_path, recipe={"num_steps": 6, "learning_rate": 3e-3}), tmp_path, one_rank())
    losses = [loss for loss, _ in losses_of(tmp_path)]
    assert losses[-1] < losses[0]


CACHED = {"teacher_logits": "cached", "temperature": 2.0, "cross_entropy": 0.2}


def test_all_but_one_cached_token_is_the_live_teacher(tmp_path: Path) -> None:
    for padding in ("dynamic", "packed"):
        axes = {"padding": padding}
        loss, expected = gradients(set_up(how_of(**CACHED | {"teacher_logits": "live"}), trial_of(tmp_path, axes)))
        other, found = gradients(set_up(how_of(**CACHED, top_k=767), trial_of(tmp_path, axes)))
        assert other == pytest.approx(loss, rel=1e-5)
        close(expected, found, 1e-3)


def folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "teacher").iterdir())


def test_a_cache_is_written_once_and_needs_no_teacher_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "BLOCK_BYTES", 2048)
    loss, _ = gradients(set_up(how_of(**CACHED, top_k=8), trial_of(tmp_path)))
    (folder,) = folders(tmp_path)
    assert len(list(folder.glob("block-*.safetensors"))) > 2
    monkeypatch.setattr(distill, "read_checkpoint", None)
    again, _ = gradients(set_up(how_of(**CACHED, top_k=8), trial_of(tmp_path)))
    assert again == loss
    monkeypatch.undo()
    # Another number of tokens, another teacher or other data are another cache.
    gradients(set_up(how_of(**CACHED, top_k=9), trial_of(tmp_path)))
    gradients(set_up(how_of(**CACHED, top_k=8), trial_of(tmp_path, recipe={"max_length": 40})))
    changed = copied_teacher(tmp_path / "changed")
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    set_up(how_of(**CACHED, top_k=8), trial_of(tmp_path), changed)
    assert len(folders(tmp_path)) == 4


@pytest.mark.parametrize("damage", ["stale", "cut", "missing", "no manifest", "swapped"])
def test_a_cache_that_is_not_what_it_should_be_is_refused(tmp_path: Path, damage: str) -> None:
    set_up(how_of(**CACHED, top_k=8), trial_of(tmp_path))
    (folder,) = folders(tmp_path)
    block = folder / teacher_cache.block_name(0)
    if damage in ("stale", "swapped"):
        set_up(how_of(**CACHED, top_k=7), trial_of(tmp_path))
        (other,) = set(folders(tmp_path)) - {folder}
        if damage == "stale":
            shutil.rmtree(folder)
            other.rename(folder)
        else:
            shutil.copy(other / block.name, block)
    elif damage == "cut":
        block.write_bytes(block.read_bytes()[:-8])
    else:
        (block if damage == "missing" else folder / teacher_cache.MANIFEST).unlink()
    with pytest.raises(InvalidInput) as caught:
        set_up(how_of(**CACHED, top_k=8), trial_of(tmp_path))
    said = str(caught.value)
    assert "\n" not in said and f"remove {folder}, and it is written anew" in said
    because = {
        "stale": "is stale: top_k 7 instead of 8", "swapped": "has a stale block", "no manifest": "has no manifest"
    }  # fmt: skip
    assert because.get(damage, "has a damaged block-00000") in said


def test_blocks_have_work_for_every_rank() -> None:
    assert blocks_of([2] * 8, 8, 1) == [0]
    assert blocks_of([2] * 8, 8, 4) == [0, 2, 4, 6]
    assert blocks_of([3, 1, 1, 1], teacher_cache.BLOCK_BYTES, 1) == [0, 1, 2, 3]
    assert blocks_of([1], 8, 4) == [0]


def test_more_tokens_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="768 of 768 tokens; allowed: 1 to 767"):
        set_up(how_of(**CACHED, top_k=768), trial_of(tmp_path))


def test_maps_need_the_eager_kernel(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"eager kernel only.*not with attention: sdpa") as caught:
        set_up(how_of(attention=1.0), trial_of(tmp_path))
    assert len(caught.value.mistakes) == 1


def test_blocks_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        set_up(how_of(hidden=1.0, matched_layers=[[2, 3]]), trial_of(tmp_path))
    said = [mistake.what for mistake in caught.value.mistakes]
    assert said == ["block 2 of the student's 2", "block 3 of the teacher's 3"]
    assert matching.pairs_of(how_of(hidden=1.0), 2, 28) == [(0, 13), (1, 27)]


def test_nothing_is_kept_between_steps(tmp_path: Path) -> None:
    work = set_up(how_of(hidden=1.0, attention=1.0), trial_of(tmp_path, {"attention": "eager"}))
    gradients(work)
    own = work.loss.compute.__self__._listener  # type: ignore[attr-defined]
    assert not own.streams and not own.maps
    assert head(work.model).targets is None  # type: ignore[union-attr]
