"""Ask a session the validation questions, as the training loop asks the model, and judge each category apart."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from egobench.data import source
from egobench.errors import InvalidInput, Mistake
from egobench.evaluate.ask import Generation, Questions, judge, share
from egobench.evaluate.score import Prediction, squad
from egobench.infer.session import Session
from egobench.models.prompt import encode_all
from egobench.records.inference import QuestionsRequest
from egobench.records.measures import Answers, CategoryScore


def questions_of(asked: QuestionsRequest, session: Session, tokenizer: Any) -> Questions:
    """Read or generate the questions of a workload.

    Raises:
        InvalidInput: pictures of another size than the model's, or no question short enough.
    """
    if asked.image_px != session.facts.image_px:
        what = f"{asked.image_px} px, but the model sees {session.facts.image_px} px"
        raise InvalidInput([Mistake("image_px", what, f"allowed: {session.facts.image_px}")])
    data = source.load(asked.data, "validation", cache_dir=Path(asked.cache_folder), image_px=asked.image_px)
    samples = data.samples[: asked.num_questions]
    kept = encode_all(samples, tokenizer, session.facts.num_image_tokens, asked.max_length)
    if not kept.samples:
        what = f"no question fits into {asked.max_length} tokens"
        raise InvalidInput([Mistake("recipe.max_length", what, todo="raise max_length")])
    return Questions(
        kept.samples,
        kept.encoded,
        lambda indices: data.pixels([kept.samples[index] for index in indices], asked.image_px),
    )


def answer(session: Session, tokenizer: Any, questions: Questions, how: Generation) -> tuple[dict[int, str], int]:
    """Answer all questions greedily; return the answers by index, and the number of generated tokens."""
    answers: dict[int, str] = {}
    num_generated = 0
    order = share(questions, 0, 1)
    for start in range(0, len(order), how.batch_size):
        part = order[start : start + how.batch_size]
        new = session.generate(
            [questions.encoded[index].prompt_ids for index in part], questions.pictures(part),
            max_new_tokens=how.max_new_tokens, end_token_id=how.end_token_id,
        )  # fmt: skip
        num_generated += int((new != how.pad_token_id).sum())
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        answers |= {index: text.strip() for index, text in zip(part, texts, strict=True)}
    return answers, num_generated


def ask(session: Session, tokenizer: Any, asked: QuestionsRequest) -> tuple[Answers, tuple[CategoryScore, ...]]:
    """Ask, judge, and write a line for every answer; return the scores, of all and of each category."""
    began = time.perf_counter()
    questions = questions_of(asked, session, tokenizer)
    facts = session.facts
    how = Generation(asked.batch_size, asked.max_new_tokens, facts.pad_token_id, facts.end_token_id)
    answers, num_generated = answer(session, tokenizer, questions, how)
    points = judge(questions, answers, Path(asked.predictions))
    made = Answers(
        num_questions=len(answers),
        **points,
        eval_time_s=time.perf_counter() - began,
        generated_tokens=num_generated,
    )
    return made, categories(Path(asked.predictions))


def categories(predictions: Path) -> tuple[CategoryScore, ...]:
    """Score each category of a file that `judge` wrote, in points of 0-100."""
    held: dict[str, list[Prediction]] = defaultdict(list)
    for line in predictions.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        held[item["category"]].append(Prediction(item["id"], item["prediction"], tuple(item["references"])))
    scores = []
    for category, items in sorted(held.items()):
        score = squad(items)
        points = {name: 100 * score[name] for name in ("em", "em_low", "em_high", "f1", "f1_low", "f1_high")}
        scores.append(CategoryScore(category=category, num_questions=len(items), **points))
    return tuple(scores)
