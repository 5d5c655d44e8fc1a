"""Requests of a fixed length to measure with: one picture and made-up text each, in the prompt's usual frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from egobench.data.batches import Pixels
from egobench.errors import InvalidInput, Mistake
from egobench.infer.session import Facts, Ids
from egobench.models.prompt import IMAGE_END, IMAGE_START, IMAGE_TOKEN, OPENING, SPECIAL_TOKENS, TURN

_SEED: Final = 0


@dataclass(frozen=True)
class Inputs:
    """Rows of equal length, no padding; the first n of them are the batch of size n."""

    ids: Ids
    """int64 [rows, num_prompt_tokens]."""
    pixels: Pixels
    """uint8 [rows, px, px, 3]."""

    def first(self, rows: int) -> Inputs:
        """Return the batch of a size."""
        return Inputs(self.ids[:rows], self.pixels[:rows])


def fixed_inputs(tokenizer: Any, facts: Facts, num_prompt_tokens: int, rows: int) -> Inputs:
    """Make requests: the same for every model with this tokenizer and picture, whoever asks.

    Raises:
        InvalidInput: a picture and the frame around it alone are longer than the prompt.
    """
    before, after = _ids(tokenizer, OPENING + IMAGE_START), _ids(tokenizer, IMAGE_END + "\n")
    turn = _ids(tokenizer, TURN)
    picture = _ids(tokenizer, IMAGE_TOKEN) * facts.num_image_tokens
    frame = len(before) + len(picture) + len(after) + len(turn)
    if num_prompt_tokens <= frame:
        what = f"{num_prompt_tokens}, but a picture takes {facts.num_image_tokens} tokens and its frame the rest"
        raise InvalidInput([Mistake("inference.num_prompt_tokens", what, f"allowed: more than {frame}")])
    words, side = _words(tokenizer, facts.vocab_size), facts.image_px
    ids, pixels = [], []
    for row in range(rows):  # a generator each, so that a row does not depend on how many there are
        draw = np.random.default_rng((_SEED, row))
        ids.append([*before, *picture, *after, *draw.choice(words, num_prompt_tokens - frame), *turn])
        pixels.append(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
    return Inputs(np.array(ids, dtype=np.int64), np.stack(pixels))


def _words(tokenizer: Any, vocab_size: int) -> Ids:
    special = set(tokenizer.all_special_ids) | set(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    known = min(len(tokenizer), vocab_size)
    return np.array([token for token in range(known) if token not in special], dtype=np.int64)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
