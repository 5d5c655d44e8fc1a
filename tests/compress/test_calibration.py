"""Calibration questions are drawn from the training split, evenly, reproducibly, and with their pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import NUM_IMAGE_TOKENS, PX, drawn, egoworld
from PIL import Image

from egobench.data.sample import Media, Sample
from egobench.data.source import DataSet
from egobench.errors import InvalidInput
from egobench.models.pixels import from_uint8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return egoworld(tmp_path_factory.mktemp("cache"), "train", 64)


def with_frames(folder: Path, counts: list[int]) -> DataSet:
    """Return questions about so many frames each, every frame of its own colour."""
    samples, number = [], 0
    for index, count in enumerate(counts):
        names = []
        for _ in range(count):
            number += 1
            names.append(f"{number}.png")
            Image.new("RGB", (PX, PX), (number * 10, 0, 0)).save(folder / names[-1])
        media = Media("frames" if count > 1 else "image", tuple(names))
        samples.append(Sample(f"q{index}", "test", "open", media, "what is it?", ("a cup",), scene=f"s{index}"))
    return DataSet(tuple(samples), folder, {})


def test_the_same_seed_draws_the_same_questions_whatever_their_order(data: DataSet) -> None:
    first = drawn(data, 12)
    again = drawn(replace(data, samples=data.samples[::-1]), 12)
    assert [sample.id for sample in first.samples] == [sample.id for sample in again.samples]
    assert first.digest == again.digest
    assert np.array_equal(first.pictures, again.pictures)
    assert all("/train/" in sample.id for sample in first.samples)
    # Drawn evenly: not the beginning of the file.
    assert {sample.id for sample in first.samples} != {sample.id for sample in data.samples[:12]}


def test_another_seed_draws_others_and_is_told_apart(data: DataSet) -> None:
    first, other = drawn(data, 12), drawn(data, 12, seed=1)
    assert {sample.id for sample in first.samples} != {sample.id for sample in other.samples}
    assert first.digest != other.digest
    # The digest names the seed too: all questions are the same set under every seed.
    assert drawn(data, 64).digest != drawn(data, 64, seed=1).digest


def test_every_question_comes_with_its_own_pictures(tmp_path: Path) -> None:
    data = with_frames(tmp_path, [1, 3, 2, 1])
    asked = drawn(data, 4, max_length=256)
    inputs = list(asked.inputs())
    assert len(inputs) == 4
    for sample, given in zip(asked.samples, inputs, strict=True):
        assert torch.equal(given["pixel_values"], from_uint8(data.pixels([sample], PX)))
        assert int((given["input_ids"] == 5).sum()) == NUM_IMAGE_TOKENS * len(sample.media.paths)
        assert given["attention_mask"].shape == given["input_ids"].shape
    facts = asked.facts()
    assert (facts["num_samples"], facts["num_images"], facts["seed"]) == (4, 7, 0)
    assert facts["num_tokens"] == sum(given["input_ids"].numel() for given in inputs)
    assert facts["digest"] == asked.digest


def test_questions_without_pictures_are_left_out_and_a_set_of_them_refused(data: DataSet, tmp_path: Path) -> None:
    blind = tuple(replace(sample, media=Media("image", ())) for sample in data.samples[:40])
    mixed = replace(data, samples=blind + data.samples[40:])
    assert all(sample.media.paths for sample in drawn(mixed, 24).samples)
    with pytest.raises(InvalidInput, match=r"num_samples is 25, but only 24 of 64 .* at most 24"):
        drawn(mixed, 25)
    with pytest.raises(InvalidInput, match=r"no training sample has a picture \(40 samples\)"):
        drawn(replace(data, samples=blind), 4)


def test_fewer_questions_than_asked_for_are_refused(data: DataSet) -> None:
    with pytest.raises(InvalidInput, match=r"num_samples is 65, but only 64 of 64"):
        drawn(data, 65)
    with pytest.raises(InvalidInput, match=r"only 0 of 64 training samples have pictures and fit into 16 tokens"):
        drawn(data, 1, max_length=16)


def test_what_is_asked_later_is_never_calibrated_on(data: DataSet, tmp_path: Path) -> None:
    validation = egoworld(tmp_path, "validation", 64)
    assert drawn(data, 64, held_out=validation).samples
    with pytest.raises(InvalidInput, match=r"scenes are in the validation split too"):
        drawn(validation, 8, held_out=validation)
