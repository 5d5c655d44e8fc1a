"""What every runtime offers: pictures to features, a prompt to logits, and one more position at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from egobench.data.batches import Pixels
from egobench.models.prompt import left_padded

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

FACTS = "session.json"


@dataclass(frozen=True)
class Facts:
    """What whoever asks has to know of the model."""

    image_px: int
    num_image_tokens: int
    """Tokens of the prompt that one picture takes."""
    image_token_id: int
    pad_token_id: int
    end_token_id: int
    vocab_size: int

    def write(self, folder: Path) -> None:
        """Leave them in the folder of an exported model."""
        (folder / FACTS).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """Read what `write` left."""
        return cls(**json.loads((folder / FACTS).read_text(encoding="utf-8")))


class Fineness(Protocol):
    """What `prepare` reads of a `spec.quantization.Quantization`."""

    @property
    def group_size(self) -> int:
        """Weights of a row that share a scale, in the 4-bit kinds."""

    @property
    def parts(self) -> str:
        """`llm`, or `all`: the vision tower and the projector too."""


class Session(Protocol):
    """A loaded model with the cache of the batch that it is answering.

    `prefill` begins a batch and forgets the last one; each `decode` adds one position to every row and costs one.
    """

    facts: Facts

    def encode_images(self, pixels: Pixels) -> Any:
        """Return the features of pictures, uint8 [n, px, px, 3], in the runtime's own type."""

    def prefill(self, ids: Ids, features: Any, *, num_padding: Ids | None = None, room: int = 1) -> Any:
        """Read prompts, int64 [rows, width], and return the logits after them, [rows, vocabulary].

        Args:
            ids: Padded on the left.
            features: Of the pictures, in the order of the image tokens.
            num_padding: int64 [rows]: how much of each row is padding; None: nothing.
            room: Most positions that will be decoded after it.
        """

    def decode(self, tokens: Ids) -> Any:
        """Add a token to every row, int64 [rows], and return the logits after it."""

    def greedy(self, logits: Any) -> Ids:
        """Return the likeliest token of every row; waits for the device."""

    def to_numpy(self, logits: Any) -> Logits:
        """Copy logits to float32 on the host."""

    def wait(self) -> None:
        """Return when the device has done what it was given."""

    def generate(
        self, prompts: Sequence[Sequence[int]], pixels: Pixels, *, max_new_tokens: int, end_token_id: int | None = None
    ) -> Ids:
        """Answer greedily; int64 [rows, at most max_new_tokens], padding after a row's end.

        Args:
            prompts: Token ids.
            pixels: Pictures of all prompts, in order.
            max_new_tokens: Longest answer.
            end_token_id: Ends a row; None: every row gets `max_new_tokens`.
        """
        ids, is_real = left_padded(prompts, self.facts.pad_token_id)
        num_padding = (1 - is_real).sum(axis=1)
        logits = self.prefill(ids, self.encode_images(pixels), num_padding=num_padding, room=max_new_tokens)
        is_done = np.zeros(len(prompts), dtype=bool)
        made: list[Ids] = []
        while True:
            tokens = np.where(is_done, self.facts.pad_token_id, self.greedy(logits))
            made.append(tokens)
            if end_token_id is not None:
                is_done |= tokens == end_token_id
            if len(made) == max_new_tokens or is_done.all():
                return np.stack(made, axis=1)
            logits = self.decode(tokens)


class HostSession(Session):
    """A session whose logits are float32 on the host already."""

    def greedy(self, logits: Any) -> Ids:
        tokens: Ids = logits.argmax(axis=-1)
        return tokens

    def to_numpy(self, logits: Any) -> Logits:
        copied: Logits = np.array(logits, dtype=np.float32)
        return copied

    def wait(self) -> None:
        """Nothing to wait for: calls return when they are done."""
