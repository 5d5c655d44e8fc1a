"""What a demo and an answering process say to each other: one JSON line a message. SI units, bytes.

The process's first line is an `InferenceRequest`, each further one a `Question`; every line gets one `Message`.
"""

from __future__ import annotations

from egobench.records.inference import MemoryPeak
from egobench.spec.strict import Record


class Question(Record):
    """One picture, and what is asked about it."""

    picture: str
    """An image file."""
    text: str
    max_new_tokens: int = 16


class ModelOpened(Record):
    """A model is loaded, and waits for questions."""

    load_time_s: float
    size_on_disk_bytes: int
    """Weights and graphs; tokenizer and settings left out."""
    image_px: int
    """Side of the square that a picture is resized to."""
    threads: int
    versions: dict[str, str] = {}
    """Of the runtime's packages."""


class Reply(Record):
    """An answer, and what it took; one row, greedy, up to the model's own end."""

    answer: str
    num_prompt_tokens: int
    num_new_tokens: int
    image_encoding_s: float
    time_to_first_token_s: float
    """Image encoding and prefill."""
    time_per_output_token_s: float | None
    """Mean decoding step; None where the first token was the last."""
    request_s: float
    num_runs: int
    """The question was answered so often; the times are those of the run whose `request_s` is the median."""
    memory: MemoryPeak
    """Peak while it was answered, the loaded model included."""


class Message(Record):
    """One line of an answering process: one of the three."""

    opened: ModelOpened | None = None
    reply: Reply | None = None
    refused: str | None = None
    """Why there is no answer, for people."""


class Example(Record):
    """A picture of egoworld with a question about it."""

    picture: str
    question: str
    answer: str


class Offer(Record):
    """What a machine can show: `python -m egobench.infer.offer`."""

    device: str
    """cpu or cuda."""
    missing: dict[str, str | None]
    """Runtime -> what this machine lacks to run it; None: nothing."""
    examples: tuple[Example, ...]
