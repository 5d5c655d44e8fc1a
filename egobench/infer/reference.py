"""Outputs to compare with: the parent's tokens and logits on the requests that are timed.

A kernel can be fast and wrong at one shape only (a step of one token, a batch of one), so every batch size is checked,
prompt and steps apart; steps are fed the reference's tokens, so that one early difference is not counted for ever.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from egobench.errors import InvalidInput, Mistake
from egobench.infer.inputs import Inputs
from egobench.infer.session import Ids, Logits, Session
from egobench.records.inference import OutputCheck

NUM_STEPS: Final = 4
"""Positions whose logits are kept: the prompt's, and the steps after it."""
MAX_ROWS: Final = 8
"""Rows that are compared; a vocabulary of 150,000 makes 0.6 MB a row and position."""


@dataclass(frozen=True)
class Reference:
    """What a session answered."""

    ids: Ids
    """int64 [rows, width]: the prompts."""
    tokens: Ids
    """int64 [rows, new tokens], greedy."""
    logits: Logits
    """float32 [rows, positions, vocabulary]; position 0 is the prompt's."""

    def write(self, path: Path) -> None:
        """Leave it in a file that appears whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.npz")
        np.savez(scratch, ids=self.ids, tokens=self.tokens, logits=self.logits)
        os.replace(scratch, path)

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Read what `write` left.

        Raises:
            InvalidInput: there is no such file, or it is not whole.
        """
        try:
            with np.load(path, allow_pickle=False) as held:
                return cls(held["ids"], held["tokens"], held["logits"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            todo = "measure the row that others are compared with first, with write_reference"
            raise InvalidInput([Mistake("reference", f"{path} cannot be read: {error}", todo=todo)]) from error


def reference_of(session: Session, inputs: Inputs, num_new_tokens: int) -> Reference:
    """Answer the requests and keep what was answered."""
    part = inputs.first(MAX_ROWS)
    tokens = session.generate(list(map(list, part.ids)), part.pixels, max_new_tokens=num_new_tokens)
    return Reference(part.ids, tokens, forced_logits(session, part, tokens))


def forced_logits(session: Session, inputs: Inputs, tokens: Ids) -> Logits:
    """Return the logits after the prompt and after each of the first tokens, [rows, positions, vocabulary]."""
    num_steps = min(NUM_STEPS, tokens.shape[1])
    logits = session.prefill(inputs.ids, session.encode_images(inputs.pixels), room=num_steps)
    made = [session.to_numpy(logits)]
    for step in range(num_steps - 1):
        made.append(session.to_numpy(session.decode(np.ascontiguousarray(tokens[:, step]))))
    return np.stack(made, axis=1)


def check(session: Session, inputs: Inputs, tokens: Ids, reference: Reference, max_logits_error: float) -> OutputCheck:
    """Compare a batch with the reference's rows.

    Args:
        session: Answers once more, fed the reference's tokens.
        inputs: The batch.
        tokens: What it was answered while it was timed, int64 [rows, new tokens].
        reference: Of the same requests.
        max_logits_error: What still counts as the same model.

    Raises:
        InvalidInput: the reference is of other requests, or of another vocabulary.
    """
    rows = min(len(inputs.ids), len(reference.ids))
    if not np.array_equal(reference.ids[:rows], inputs.ids[:rows]):
        raise InvalidInput([Mistake("reference", "was made of other requests than are measured here")])
    wanted, part = reference.tokens[:rows], inputs.first(len(inputs.ids))
    # The whole batch is fed, as it was timed; rows beyond the reference's repeat its first.
    fed = np.concatenate([wanted, np.repeat(wanted[:1], len(part.ids) - rows, axis=0)])
    made, kept = forced_logits(session, part, fed)[:rows], reference.logits[:rows]
    if made.shape != kept.shape:
        raise InvalidInput([Mistake("reference", f"has logits {kept.shape}, this model {made.shape}")])
    width = min(tokens.shape[1], wanted.shape[1])
    is_equal = np.logical_and.accumulate(tokens[:rows, :width] == wanted[:, :width], axis=1)
    of_prompt, of_steps = relative_error(made[:, :1], kept[:, :1]), relative_error(made[:, 1:], kept[:, 1:])
    return OutputCheck(
        num_tokens=rows * width,
        num_equal_tokens=int(is_equal.sum()),
        prefill_error=of_prompt,
        decode_error=of_steps,
        agrees=bool(of_prompt <= max_logits_error and of_steps <= max_logits_error),  # a NaN is at most nothing
    )


def relative_error(made: Logits, wanted: Logits) -> float:
    """Return the L2 norm of the difference over that of what was wanted.

    Each position is first moved to mean 0, which changes no probability: trained models have logits far from 0, beside
    which anything looks like a small difference.
    """
    left, right = (one - one.mean(axis=-1, keepdims=True, dtype=np.float64) for one in (made, wanted))
    return float(np.linalg.norm(left - right) / np.linalg.norm(right))
