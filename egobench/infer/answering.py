"""The answering process: `python -m egobench.infer.answering`, JSON lines in, JSON lines out (`records/answering.py`).

The sessions and the clock are those of the measurement. It ends when its input does, so it cannot outlive who asks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from egobench.data.sample import Media, Sample
from egobench.errors import EXIT_OK, EgobenchError, InvalidInput, Mistake
from egobench.infer.folder import size_on_disk_bytes
from egobench.infer.inputs import Inputs
from egobench.infer.measure import Opened, memory_peak, run_once
from egobench.infer.opening import open_watched
from egobench.infer.runtimes import versions
from egobench.models.internvl import tokenizer_of
from egobench.models.pixels import to_array
from egobench.models.prompt import encode
from egobench.probes.allocator import state_allocator
from egobench.records.answering import Message, ModelOpened, Question, Reply
from egobench.records.inference import InferenceRequest

LONGEST_PROMPT: Final = 2048
"""Tokens, the picture's included."""
_MOST_RUNS: Final = 5
_ENOUGH_S: Final = 1.0
"""A question that is answered faster than this is answered again: one short run says little of a busy machine."""
Say = Callable[[Message], None]


def main() -> int:
    """Open the model of the first line, then answer the others one by one."""
    state_allocator()
    return serve(sys.stdin, _private_stdout())


def serve(lines: Iterable[str], say: Say) -> int:
    """Answer line by line; a request that cannot be met is refused in words, anything else ends the process."""
    lines = iter(lines)
    try:
        model = Model.open(InferenceRequest.model_validate_json(next(lines, "")))
    except EgobenchError as error:
        say(Message(refused=str(error)))
        return error.exit_code
    say(Message(opened=model.facts))
    for line in lines:
        try:
            say(Message(reply=model.answer(Question.model_validate_json(line))))
        except EgobenchError as error:
            say(Message(refused=str(error)))
    return EXIT_OK


def _private_stdout() -> Say:
    """Keep stdout for messages: whatever a library prints goes to stderr."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: Message) -> None:
        stream.write(message.model_dump_json() + "\n")
        stream.flush()

    return say


@dataclass
class Model:
    """A loaded model with its tokenizer."""

    opening: Opened
    tokenizer: Any
    facts: ModelOpened
    is_warm: bool = False

    @classmethod
    def open(cls, request: InferenceRequest) -> Model:
        """Load what a request names."""
        threads = len(os.sched_getaffinity(0))
        opening, folder = open_watched(request, threads), Path(request.folder)
        facts = ModelOpened(
            load_time_s=opening.load_time_s,
            size_on_disk_bytes=size_on_disk_bytes(folder),
            image_px=opening.session.facts.image_px,
            threads=threads,
            versions=versions(request.runtime),
        )
        return cls(opening, tokenizer_of(folder), facts)

    def answer(self, question: Question) -> Reply:
        """Answer one question; the first one twice, because a first run compiles and fills caches.

        Raises:
            InvalidInput: the picture cannot be read, or the question is too long.
        """
        inputs, session = self.inputs_of(question), self.opening.session
        if not self.is_warm:
            run_once(session, inputs, 2)
            self.is_warm = True
        self.opening.probe.reset()
        end = session.facts.end_token_id
        runs = [run_once(session, inputs, question.max_new_tokens, end)]
        while len(runs) < _MOST_RUNS and sum(run.request_s for run in runs) < _ENOUGH_S:
            runs.append(run_once(session, inputs, question.max_new_tokens, end))
        run = sorted(runs, key=lambda one: one.request_s)[len(runs) // 2]
        tokens = run.tokens[0]
        steps_s = run.step_times_s
        return Reply(
            answer=self.tokenizer.decode(tokens[tokens != end], skip_special_tokens=True).strip(),
            num_prompt_tokens=inputs.ids.shape[1],
            num_new_tokens=len(tokens),
            image_encoding_s=run.encoded_s,
            time_to_first_token_s=run.first_token_s,
            time_per_output_token_s=float(np.mean(steps_s)) if steps_s else None,
            request_s=run.request_s,
            num_runs=len(runs),
            memory=memory_peak(self.opening.probe.peak()),
        )

    def inputs_of(self, question: Question) -> Inputs:
        """Make a batch of one."""
        facts = self.opening.session.facts
        try:
            with Image.open(question.picture) as picture:
                pixels = np.stack([to_array(picture, facts.image_px)])
        except (OSError, ValueError) as error:
            raise InvalidInput([Mistake("picture", f"cannot be read: {error}")]) from error
        sample = Sample("asked", "asked", "open", Media("image", (question.picture,)), question.text, ("",))
        made = encode(sample, self.tokenizer, facts.num_image_tokens, LONGEST_PROMPT)
        if made is None or made.num_truncated:
            raise InvalidInput([Mistake("question", f"is too long: the prompt exceeds {LONGEST_PROMPT} tokens")])
        return Inputs(np.array([made.prompt_ids], dtype=np.int64), pixels)


if __name__ == "__main__":
    sys.exit(main())
