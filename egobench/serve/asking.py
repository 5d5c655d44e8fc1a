"""The Ask tab: check what was given, ask the chosen models one after another, show each answer as it comes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from egobench.errors import InvalidInput, Mistake
from egobench.records.answering import ModelOpened, Offer, Question, Reply
from egobench.serve.answerers import NoAnswer, Pool
from egobench.serve.html import failure, render
from egobench.serve.models import Model, models_of
from egobench.serve.pictures import checked_picture, uploaded_path
from egobench.serve.sources import Sources

MOST_MODELS: Final = 4
"""Asked with one click."""
MOST_CHARACTERS: Final = 500
MOST_NEW_TOKENS: Final = 64


@dataclass
class Card:
    """What is shown of one model."""

    model: Model
    state: str = "waits"
    """waits, loads, answers, answered or failed."""
    facts: ModelOpened | None = None
    reply: Reply | None = None
    because: str = ""


@dataclass
class Desk:
    """Where questions arrive."""

    sources: Sources
    offer: Offer | None
    """None: this machine cannot run models."""
    pool: Pool
    scratch: Path
    uploads: Path

    def sweeps(self) -> list[str]:
        """Return the keys of the sweeps that left a model."""
        return [one.key for one in self.sources.run_here() if self.models(one.key)]

    def models(self, key: str) -> list[Model]:
        """Return a sweep's models, read anew: it may be running."""
        source = next((one for one in self.sources.run_here() if one.key == key), None)
        if source is None or self.offer is None:
            return []
        return models_of(source.folder, key, self.offer.device, self.offer.missing)

    def ask(self, payload: Any, text: str, keys: Sequence[str], num_tokens: float) -> Iterator[str]:
        """Yield the cards, again whenever something is known.

        What is wrong with the request is said in place of them.
        """
        try:
            chosen = self._chosen(keys)
            words = _checked_text(text)
            source = uploaded_path(payload, self.uploads)
            with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
                picture = checked_picture(source, Path(folder) / "picture.png")
                tokens = min(max(int(num_tokens), 1), MOST_NEW_TOKENS)
                question = Question(picture=str(picture), text=words, max_new_tokens=tokens)
                yield from self._ask_all([Card(model) for model in chosen], question)
        except InvalidInput as error:
            yield failure(str(error))

    def _ask_all(self, cards: list[Card], question: Question) -> Iterator[str]:
        for card in cards:
            card.state = "answers" if self.pool.is_loaded(card.model.request) else "loads"
            yield render("answers", cards=cards, question=question.text)
            try:
                card.facts, card.reply = self.pool.ask(card.model.request, question)
                card.state = "answered"
            except NoAnswer as error:
                card.state, card.because = "failed", str(error)
        yield render("answers", cards=cards, question=question.text)

    def _chosen(self, keys: Sequence[str]) -> list[Model]:
        known = {model.key: model for key in {one.partition(":")[0] for one in keys} for model in self.models(key)}
        chosen = [known[key] for key in keys if key in known and not known[key].because]
        if not chosen:
            raise InvalidInput([Mistake("models", "none is chosen", todo="choose at least one")])
        if len(chosen) > MOST_MODELS:
            what = f"{len(chosen)} are chosen"
            raise InvalidInput([Mistake("models", what, f"allowed: at most {MOST_MODELS} at once")])
        return chosen


def _checked_text(text: str | None) -> str:
    words = " ".join((text or "").split())
    if not words:
        raise InvalidInput([Mistake("question", "is empty", todo="write one, or take an example below")])
    if len(words) > MOST_CHARACTERS:
        what = f"has {len(words)} characters"
        raise InvalidInput([Mistake("question", what, f"allowed: at most {MOST_CHARACTERS}")])
    return words
