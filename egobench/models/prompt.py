r"""The chat text that samples become for training and for generation; free of torch.

`<|im_start|>user\n<img><IMG_CONTEXT>*N</img>\nquestion<|im_end|>\n<|im_start|>assistant\nanswer<|im_end|>`, as
InternVL writes it. Labels are -100 everywhere but on the answer and its end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from egobench.data.sample import Sample

IGNORED = -100
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
IMAGE_START, IMAGE_END, IMAGE_TOKEN = "<img>", "</img>", "<IMG_CONTEXT>"
SPECIAL_TOKENS = (PAD, START, END, IMAGE_START, IMAGE_END, IMAGE_TOKEN)
OPENING = f"{START}user\n"
TURN = f"{END}\n{START}assistant\n"

Padded = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """One sample as token ids; `input_ids[:prompt_length]` is what generation starts from."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    prompt_length: int
    num_image_tokens: int
    num_truncated: int = 0

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.input_ids[: self.prompt_length]

    @property
    def num_supervised(self) -> int:
        return len(self.input_ids) - self.prompt_length

    @property
    def num_text_tokens(self) -> int:
        return len(self.input_ids) - self.num_image_tokens


@dataclass(frozen=True)
class EncodedSet:
    """Encoded samples beside the samples they came from, and what the length limit cost."""

    samples: tuple[Sample, ...]
    encoded: tuple[Encoded, ...]
    num_too_long: int
    """Samples left out: image tokens and answer alone exceed the limit."""
    num_truncated: int
    """Samples kept with the end of the question cut off."""


def encode(sample: Sample, tokenizer: Any, num_image_tokens: int, max_length: int) -> Encoded | None:
    """Encode one sample; return None where image tokens and answer alone exceed `max_length`."""
    encoded = encode_all([sample], tokenizer, num_image_tokens, max_length).encoded
    return encoded[0] if encoded else None


def encode_all(samples: Sequence[Sample], tokenizer: Any, num_image_tokens: int, max_length: int) -> EncodedSet:
    """Encode a whole data set with two tokenizer calls.

    `num_image_tokens` counts one image; a sample of several frames gets as many for each. Only the question
    is ever cut, never image tokens or the answer.
    """
    ids = _Fixed.of(tokenizer)
    questions = _ids(tokenizer, [_plain(sample.question) for sample in samples])
    answers = _ids(tokenizer, [_plain(sample.answers[0]) + END for sample in samples])
    kept: list[Sample] = []
    encoded: list[Encoded] = []
    for sample, question, answer in zip(samples, questions, answers, strict=True):
        images = ids.images(len(sample.media.paths), num_image_tokens)
        room = max_length - len(ids.opening) - len(images) - len(ids.turn) - len(answer)
        if room < 1:
            continue
        prompt = [*ids.opening, *images, *question[:room], *ids.turn]
        kept.append(sample)
        encoded.append(
            Encoded(
                input_ids=(*prompt, *answer),
                labels=(*([IGNORED] * len(prompt)), *answer),
                prompt_length=len(prompt),
                num_image_tokens=num_image_tokens * len(sample.media.paths),
                num_truncated=max(0, len(question) - room),
            )
        )
    truncated = sum(item.num_truncated > 0 for item in encoded)
    return EncodedSet(tuple(kept), tuple(encoded), len(samples) - len(kept), truncated)


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Padded, Padded]:
    """Pad prompts on the left; return their ids and the attention mask, int64 [rows, width] both."""
    width = max(len(prompt) for prompt in prompts)
    ids = np.full((len(prompts), width), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return ids, mask


@dataclass(frozen=True)
class _Fixed:
    """The token ids that every prompt shares."""

    opening: list[int]
    turn: list[int]
    image_start: list[int]
    image_token: list[int]
    image_end: list[int]

    @classmethod
    def of(cls, tokenizer: Any) -> _Fixed:
        pieces = [OPENING, TURN, IMAGE_START, IMAGE_TOKEN, IMAGE_END + "\n"]
        return cls(*_ids(tokenizer, pieces))

    def images(self, number: int, num_tokens: int) -> list[int]:
        return [*self.image_start, *(self.image_token * num_tokens), *self.image_end] * number


def _plain(text: str) -> str:
    """Break special tokens spelled out in data: an image token too many would fail the forward pass."""
    for token in SPECIAL_TOKENS:
        text = text.replace(token, f"< {token[1:]}")
    return text


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids
