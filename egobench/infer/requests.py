"""Sessions of runtimes that take whole requests and schedule steps by themselves (vLLM, TensorRT-LLM).

Steps follow the tokens that the runtime makes. A token that it would not have made itself, as a reference is fed,
begins anew with a longer prompt; logits are asked for apart, so that no timed step pays for them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from egobench.data.batches import Pixels
from egobench.infer.session import HostSession, Ids, Logits

Prompts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Answered:
    """Where a batch stands: what was read so far, and the token that follows."""

    prompts: Prompts
    pictures: Any
    tokens: Ids
    """int64 [rows]."""


class RequestSession(HostSession):
    """A session whose steps are those of running requests; `begin` and `logits_after` are the runtime's."""

    _flow: Iterator[Ids] = iter(())
    _now: Answered
    _room = 0

    @abstractmethod
    def begin(self, prompts: Prompts, pictures: Any, num_new_tokens: int) -> Iterator[Ids]:
        """Start a request for every row; yield the next token of all rows, int64 [rows]; closing it ends them."""

    @abstractmethod
    def logits_after(self, prompts: Prompts, pictures: Any) -> Logits:
        """Return the logits after prompts, up to a constant for each row: log-probabilities will do."""

    def encode_images(self, pixels: Pixels) -> Any:
        """Return the pictures as they are: the runtime encodes them in its prefill."""
        return pixels

    def prefill(self, ids: Ids, features: Any, *, num_padding: Ids | None = None, room: int = 1) -> Any:
        padding = [0] * len(ids) if num_padding is None else num_padding.tolist()
        prompts = tuple(tuple(row[skipped:].tolist()) for row, skipped in zip(ids, padding, strict=True))
        return self._start(prompts, features, room)

    def decode(self, tokens: Ids) -> Any:
        now = self._now
        prompts = tuple((*row, int(token)) for row, token in zip(now.prompts, tokens, strict=True))
        self._room -= 1
        if not np.array_equal(tokens, now.tokens):
            return self._start(prompts, now.pictures, max(1, self._room))
        self._now = Answered(prompts, now.pictures, next(self._flow))
        return self._now

    def greedy(self, logits: Any) -> Ids:
        tokens: Ids = logits.tokens
        return tokens

    def to_numpy(self, logits: Any) -> Logits:
        return self.logits_after(logits.prompts, logits.pictures)

    def generate(
        self, prompts: Sequence[Sequence[int]], pixels: Pixels, *, max_new_tokens: int, end_token_id: int | None = None
    ) -> Ids:
        """Answer greedily; a row that has ended is padded, whatever the runtime still makes of it."""
        is_done, made = np.zeros(len(prompts), dtype=bool), list[Ids]()
        self._end()
        self._flow = self.begin(tuple(map(tuple, prompts)), self.encode_images(pixels), max_new_tokens)
        for tokens in self._flow:
            made.append(np.where(is_done, self.facts.pad_token_id, tokens))
            if end_token_id is not None:
                is_done |= made[-1] == end_token_id
            if is_done.all():
                break
        self._end()
        return np.stack(made, axis=1)

    def _start(self, prompts: Prompts, pictures: Any, room: int) -> Answered:
        self._end()
        self._flow, self._room = self.begin(prompts, pictures, room), room
        self._now = Answered(prompts, pictures, next(self._flow))
        return self._now

    def _end(self) -> None:
        close = getattr(self._flow, "close", None)
        if close is not None:
            close()


def pictures_of(prompts: Prompts, pixels: Pixels, image_token_id: int, num_image_tokens: int) -> list[Pixels]:
    """Return the pictures of each row, uint8 [pictures, px, px, 3], of all pictures in order."""
    counts = [prompt.count(image_token_id) // num_image_tokens for prompt in prompts]
    ends = np.cumsum(counts)
    return [pixels[end - count : end] for end, count in zip(ends, counts, strict=True)]
