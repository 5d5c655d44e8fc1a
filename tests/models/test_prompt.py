"""Prompts: what stands in the ids is the question, the picture's tokens and the supervised answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from egobench.data.sample import Media, Sample
from egobench.models.internvl import EGOTINY, tokenizer_of
from egobench.models.prompt import END, IGNORED, IMAGE_TOKEN, SPECIAL_TOKENS, encode, encode_all

SAMPLE = Sample("1", "s", "open", Media("image", ("a.png",)), "what is in my left hand?", ("red mug",))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizer_of(EGOTINY)


def test_decodes_to_the_chat_text(tokenizer: Any) -> None:
    encoded = encode(SAMPLE, tokenizer, 16, 512)
    assert encoded is not None
    assert tokenizer.decode(encoded.input_ids) == (
        f"<|im_start|>user\n<img>{IMAGE_TOKEN * 16}</img>\nwhat is in my left hand?<|im_end|>\n"
        "<|im_start|>assistant\nred mug<|im_end|>"
    )


def test_only_the_answer_and_its_end_are_supervised(tokenizer: Any) -> None:
    encoded = encode(SAMPLE, tokenizer, 16, 512)
    assert encoded is not None
    supervised = [label for label in encoded.labels if label != IGNORED]
    assert tokenizer.decode(supervised) == "red mug" + END
    assert encoded.num_supervised == len(supervised) == len(tokenizer("red mug")["input_ids"]) + 1
    assert encoded.prompt_ids + tuple(supervised) == encoded.input_ids
    assert encoded.num_text_tokens + 16 == len(encoded.input_ids) == len(encoded.labels)


def test_frames_get_image_tokens_each(tokenizer: Any) -> None:
    frames = replace(SAMPLE, media=Media("frames", ("a", "b", "c")))
    encoded = encode(frames, tokenizer, 16, 512)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert encoded is not None and encoded.num_image_tokens == 48 == encoded.input_ids.count(image_id)


def test_only_the_question_is_cut(tokenizer: Any) -> None:
    long = replace(SAMPLE, question="where is the red mug? " * 40)
    cut = encode_all([long, SAMPLE], tokenizer, 16, 64)
    assert (cut.num_truncated, cut.num_too_long) == (1, 0)
    first = cut.encoded[0]
    assert len(first.input_ids) == 64 and first.num_truncated > 0
    assert first.num_image_tokens == 16 and tokenizer.decode(first.input_ids[first.prompt_length :]) == "red mug" + END


def test_what_cannot_fit_is_counted_not_cut(tokenizer: Any) -> None:
    result = encode_all([SAMPLE, replace(SAMPLE, answers=("mug " * 90,))], tokenizer, 16, 64)
    assert result.samples == (SAMPLE,) and result.num_too_long == 1
    assert encode(SAMPLE, tokenizer, 600, 512) is None


def test_batch_and_single_agree(tokenizer: Any) -> None:
    samples = [SAMPLE, replace(SAMPLE, question="why?", answers=("no",))]
    together = encode_all(samples, tokenizer, 16, 128).encoded
    assert together == tuple(encode(sample, tokenizer, 16, 128) for sample in samples)
    assert encode_all([], tokenizer, 16, 128).encoded == ()


def test_any_text_encodes_and_specials_are_single(tokenizer: Any) -> None:
    for text in ("naïve café ☕ 日本語 \U0001f600", "x = {1: 'é'}\t\n", " two  spaces "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert [tokenizer(token)["input_ids"] for token in SPECIAL_TOKENS] == [[i] for i in range(len(SPECIAL_TOKENS))]


def test_text_of_data_cannot_forge_a_turn(tokenizer: Any) -> None:
    """A question that spells out special tokens must not add image tokens, which would break the forward pass."""
    forged = replace(SAMPLE, question=f"what is {IMAGE_TOKEN} here?")
    encoded = encode(forged, tokenizer, 16, 512)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert encoded is not None and encoded.input_ids.count(image_id) == 16
