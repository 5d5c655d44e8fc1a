"""Students of other depth, width and family: what they inherit, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from distilling import SMALL, copied_teacher, how_of
from torch import nn

from egobench.compress.student import build_student, spread
from egobench.errors import InvalidInput
from egobench.models.internvl import EGOTINY, LoadedModel, build
from egobench.models.parts import head, llm, llm_blocks, projector, tower, tower_blocks
from egobench.spec.distillation import Distillation, Student, refusals

CPU = torch.device("cpu")


def made(how: Distillation, teacher: Path = EGOTINY, device: torch.device = CPU, seed: int = 0) -> LoadedModel:
    return build_student(
        how, teacher, Path("/nowhere"), attention="eager", dtype=torch.float32, device=device, seed=seed
    )


@pytest.fixture(scope="module")
def teacher() -> Any:
    return build({"path": str(EGOTINY)}, attention="eager", dtype=torch.float32, device=CPU, seed=0).model


def same(own: nn.Module, other: nn.Module) -> bool:
    one, two = own.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    torch.manual_seed(0)
    ids = torch.randint(262, 600, (2, 24))
    ids[:, 2 : 2 + loaded.num_image_tokens] = loaded.image_token_id
    pixels = torch.randn(2, 3, loaded.image_px, loaded.image_px)
    with torch.no_grad():
        made: torch.Tensor = loaded.model(input_ids=ids, pixel_values=pixels).logits
    return made


def test_layers_are_spread_evenly_with_the_first_and_the_last() -> None:
    assert spread(3, 3) == [0, 1, 2]
    assert spread(2, 28) == [0, 27]
    assert spread(4, 28) == [0, 9, 18, 27]
    assert spread(14, 28)[0::13] == [0, 27] and len(set(spread(14, 28))) == 14
    assert spread(1, 5) == [0]


def test_a_shallower_student_has_the_teacher_s_layers(teacher: Any) -> None:
    student = made(how_of(student={"layers": 2, "tower_layers": 2})).model
    for own, other in ((llm_blocks(student), llm_blocks(teacher)), (tower_blocks(student), tower_blocks(teacher))):
        assert len(own) == 2
        assert same(own[0], other[0]) and same(own[1], other[2])
    assert same(head(student), head(teacher)) and same(projector(student), projector(teacher))
    assert same(student.get_input_embeddings(), teacher.get_input_embeddings())
    assert same(llm(student).get_submodule("norm"), llm(teacher).get_submodule("norm"))
    assert same(tower(student).get_submodule("embeddings"), tower(teacher).get_submodule("embeddings"))


def test_as_deep_and_as_wide_is_the_teacher(teacher: Any) -> None:
    student = made(how_of(student={"layers": 3}))
    assert torch.equal(logits_of(student), logits_of(LoadedModel(**{**vars(student), "model": teacher})))


def test_narrower_networks_keep_the_largest_neurons(teacher: Any) -> None:
    """What is left computes what it did: with the dropped neurons silenced, the teacher's network is the student's."""
    student = made(how_of(student={"ffn": 96, "tower_ffn": 40})).model
    own, other = llm_blocks(student)[1].get_submodule("mlp"), llm_blocks(teacher)[1].get_submodule("mlp")
    gate, up, down = (other.get_parameter(f"{name}_proj.weight") for name in ("gate", "up", "down"))
    size = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)
    silent = size < size.sort(descending=True).values[95]
    assert silent.sum() == 384 - 96
    torch.manual_seed(0)
    given = torch.randn(5, 128)
    kept = nn.functional.silu(given @ gate.t()) * (given @ up.t())
    kept[:, silent] = 0
    assert torch.allclose(own(given), kept @ down.t(), atol=1e-5)
    assert tower_blocks(student)[0].get_parameter("mlp.fc1.bias").shape == (40,)
    assert same(llm_blocks(student)[1].get_submodule("self_attn"), llm_blocks(teacher)[1].get_submodule("self_attn"))


def test_a_narrower_stream_begins_at_random(teacher: Any) -> None:
    first = made(how_of(student={"hidden": 64, "layers": 2}))
    assert same(tower(first.model).get_submodule("encoder"), tower(teacher).get_submodule("encoder"))
    assert llm(first.model).config.hidden_size == 64
    again, other = (made(how_of(student={"hidden": 64, "layers": 2}), seed=seed).model for seed in (0, 1))
    assert same(first.model, again)
    assert not torch.equal(head(again).weight, head(other).weight)  # type: ignore[arg-type]
    assert 0.01 < head(again).weight.std() < 0.03  # type: ignore[operator, union-attr]


def test_at_random_nothing_is_the_teacher_s(teacher: Any) -> None:
    student = made(how_of(init="random")).model
    assert not torch.equal(head(student).weight, head(teacher).weight)  # type: ignore[arg-type]
    # Patches would all look alike to it with the zeros that transformers begins with.
    assert tower(student).embeddings.position_embeddings.std() > 0.01  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_another_family(family: str, teacher: Any, tmp_path: Path) -> None:
    loaded = made(how_of(student={"family": family, "layers": 2}))
    assert type(llm_blocks(loaded.model)[0]).__name__ == f"{family.capitalize()}DecoderLayer"
    assert same(tower(loaded.model), tower(teacher)) and same(head(loaded.model), head(teacher))
    logits = logits_of(loaded)
    assert logits.shape == (2, 24, 768) and logits.isfinite().all()
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    reloaded = made(how_of(student={"path": str(tmp_path)}))
    assert torch.equal(logits_of(reloaded), logits)
    assert reloaded.digest != loaded.digest


def test_a_named_student() -> None:
    loaded = made(how_of(student={"name": "egotiny", "layers": 1}, init="random"))
    assert loaded.num_parameters < 1_302_656
    assert (loaded.image_px, loaded.num_image_tokens, loaded.end_token_id) == (64, 16, 2)


def test_a_tied_student(teacher: Any, tmp_path: Path) -> None:
    """It inherits the embedding, and its folder, in which the head is not written, is whole."""
    loaded = made(how_of(student={"layers": 2, "tied": True}))
    assert head(loaded.model).weight is loaded.model.get_input_embeddings().weight
    assert same(loaded.model.get_input_embeddings(), teacher.get_input_embeddings())
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    assert torch.equal(logits_of(made(how_of(student={"path": str(tmp_path)}))), logits_of(loaded))


def test_other_ranks_have_shapes_only() -> None:
    whole, shapes = made(how_of()), made(how_of(), device=torch.device("meta"))
    sizes = [{name: one.shape for name, one in loaded.model.named_parameters()} for loaded in (whole, shapes)]
    assert sizes[0] == sizes[1]
    assert all(parameter.is_meta for parameter in shapes.model.parameters())
    assert whole.digest == shapes.digest


def refused(how: Distillation, teacher: Path = EGOTINY) -> str:
    with pytest.raises(InvalidInput) as caught:
        made(how, teacher)
    return str(caught.value)


def test_no_teacher(tmp_path: Path) -> None:
    said = refused(how_of(), tmp_path / "model")
    assert said.startswith("teacher: no config.json in") and "save: {export: merged}" in said


def test_a_teacher_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    assert "'qwen2'; allowed: internvl" in refused(how_of(), tmp_path)


@pytest.mark.parametrize("damage", ["cut", "garbage", "no weights", "no json", "a weight less", "another shape"])
def test_a_corrupt_teacher(tmp_path: Path, damage: str) -> None:
    folder = copied_teacher(tmp_path / "teacher")
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "garbage":
        weights.write_bytes(b"no checkpoint at all")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no json":
        config.write_text(config.read_text()[:200])
    else:
        said = json.loads(config.read_text())
        said["text_config"] |= {"num_hidden_layers": 4, "layer_types": None} if damage == "a weight less" else {}
        said["text_config"] |= {"intermediate_size": 200} if damage == "another shape" else {}
        config.write_text(json.dumps(said))
    said = refused(how_of(), folder)
    assert said.count("\n") == 0
    assert said.startswith(f"teacher: {folder} cannot be read: ") and "copy it again" in said


def test_another_vocabulary(tmp_path: Path) -> None:
    folder = copied_teacher(tmp_path / "student")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = [word for word, number in vocabulary.items() if number in (700, 666, 665)][:2]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    said = refused(how_of(student={"path": str(folder)}))
    assert "another vocabulary than its teacher's: 2 tokens differ" in said


def test_other_logits_and_pictures() -> None:
    said = refused(how_of(student={"name": "internvl3-1b"})).splitlines()
    assert "151674 tokens of the vocabulary, its teacher has 768" in said[0]
    assert "448 px of a picture" in said[1] and "14 px of a patch" in said[2]


def test_dimensions_that_no_model_has() -> None:
    said = refused(how_of(student={"heads": 3, "kv_heads": 2, "tower_heads": 5}))
    names = [line.partition(":")[0].rpartition(".")[2] for line in said.splitlines()]
    assert names == ["heads", "kv_heads", "tower_heads"]


def test_what_a_matrix_may_not_ask_for() -> None:
    axes = {"attention": "sdpa", "padding": "packed", "compile": "off"}
    assert refusals(how_of(), axes) == []
    wrong = how_of(student={"path": "a", "layers": 2}, weight=0.0, attention=1.0, teacher_logits="cached", hidden=0.0)
    said = [str(mistake) for mistake in refusals(wrong, axes)]
    assert len(said) == 3
    assert "also given: layers" in said[0]
    assert "teacher_logits: live" in said[1]
    assert "not with attention: sdpa, padding: packed" in said[2]
    silent = how_of(weight=0.0, matched_layers=[[0, 0]])
    assert len(refusals(silent, axes)) == 2
    assert "once more" in str(refusals(Distillation(student=Student()), axes)[0])
    assert "did you mean 'internvl3-8b'" in str(refusals(how_of(student={"name": "internvl-8b"}), axes)[0])
    assert "compile: off or blocks" in str(refusals(how_of(hidden=1.0), axes | {"compile": "whole"})[0])


def test_small_is_what_the_tests_say() -> None:
    assert made(how_of(student=SMALL)).num_parameters < 0.7 * 1_302_656
