"""Ask a model the validation questions, spread over the ranks, and judge its answers."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from egobench.data.batches import Normaliser, Pixels
from egobench.data.sample import Sample
from egobench.evaluate.score import Prediction, squad
from egobench.models.prompt import Encoded, left_padded
from egobench.records.measures import Answers
from egobench.records.store import write_text

Pictures = Callable[[Sequence[int]], Pixels]
"""uint8 [images, height, width, 3] of the questions with these indices."""


@dataclass(frozen=True)
class Questions:
    """What is asked; the three sequences run in parallel."""

    samples: Sequence[Sample]
    encoded: Sequence[Encoded]
    pictures: Pictures


@dataclass(frozen=True)
class Generation:
    """How answers are generated."""

    batch_size: int
    max_new_tokens: int
    pad_token_id: int
    end_token_id: int


def share(questions: Questions, rank: int, num_ranks: int) -> list[int]:
    """Return the questions of one rank, long ones first: equal lengths share a batch, and ranks finish together."""
    by_length = sorted(range(len(questions.encoded)), key=lambda index: -questions.encoded[index].prompt_length)
    return by_length[rank::num_ranks]


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    questions: Questions,
    indices: Sequence[int],
    how: Generation,
    compute: Callable[[torch.device], contextlib.AbstractContextManager[Any]],
    *,
    device: torch.device | None = None,
    num_in_lockstep: int | None = None,
) -> tuple[dict[int, str], int]:
    """Answer some of the questions greedily; return the answers by index, and the number of generated tokens.

    Args:
        model: What generates.
        tokenizer: Turns ids into text.
        questions: All of them.
        indices: Those to answer.
        how: Batches and their ends.
        compute: Context of a device that forward passes run in.
        device: Where the model computes, if that is not where its parameters are.
        num_in_lockstep: A forward pass is a collective of all ranks: each makes so many batches, and goes on in every
            batch until the last rank is done; answers to questions that were not asked for are thrown away.
    """
    device = device or model.device
    normalise = Normaliser(device)
    was_training, num_generated = model.training, 0
    answers: dict[int, str] = {}
    model.eval()
    parts = [indices[start : start + how.batch_size] for start in range(0, len(indices), how.batch_size)]
    num_asked = len(parts)
    parts += [indices[:1] or [0]] * ((num_in_lockstep or 0) - num_asked)
    for number, part in enumerate(parts):
        padded = left_padded([questions.encoded[index].prompt_ids for index in part], how.pad_token_id)
        ids, mask = (torch.from_numpy(one).to(device) for one in padded)
        pixels = normalise(torch.from_numpy(questions.pictures(part)).to(device))
        with compute(device):
            out = model.generate(
                input_ids=ids, attention_mask=mask, pixel_values=pixels, do_sample=False, num_beams=1, use_cache=True,
                max_new_tokens=how.max_new_tokens, eos_token_id=how.end_token_id, pad_token_id=how.pad_token_id,
                synced_gpus=num_in_lockstep is not None,
            )  # fmt: skip
        if number >= num_asked:
            continue
        new = out[:, ids.shape[1] :]
        num_generated += int((new != how.pad_token_id).sum())
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        answers |= {index: text.strip() for index, text in zip(part, texts, strict=True)}
    model.train(was_training)
    return answers, num_generated


def judge(questions: Questions, answers: dict[int, str], path: Path) -> dict[str, float]:
    """Score all answers and write each of them to `path`; return EM and F1 with intervals, in points of 0-100."""
    held = [
        Prediction(sample.id, answers[index], tuple(sample.answers)) for index, sample in enumerate(questions.samples)
    ]
    score = squad(held)
    lines = [
        json.dumps(
            {
                "id": item.id, "question": sample.question, "prediction": item.prediction,
                "references": list(item.references), "em": record["em"], "f1": record["f1"],
                "category": sample.category,
            }
        )
        for item, sample, record in zip(held, questions.samples, score["records"], strict=True)
    ]  # fmt: skip
    write_text(path, "".join(line + "\n" for line in lines))
    return {name: 100 * score[name] for name in ("em", "em_low", "em_high", "f1", "f1_low", "f1_high")}


def evaluate(
    model: Any,
    tokenizer: Any,
    questions: Questions,
    how: Generation,
    compute: Callable[[torch.device], contextlib.AbstractContextManager[Any]],
    *,
    rank: int,
    num_ranks: int,
    gather: Callable[[Any], list[Any]],
    path: Path,
    device: torch.device | None = None,
    in_lockstep: bool = False,
) -> Answers | None:
    """Ask every question once over all ranks; the first rank judges and returns the result, the others None."""
    began = time.perf_counter()
    # The first rank's share is the largest.
    num_in_lockstep = math.ceil(len(share(questions, 0, num_ranks)) / how.batch_size) if in_lockstep else None
    own = generate(
        model, tokenizer, questions, share(questions, rank, num_ranks), how, compute,
        device=device, num_in_lockstep=num_in_lockstep,
    )  # fmt: skip
    everyone: list[tuple[dict[int, str], int]] = gather(own)
    if rank != 0:
        return None
    answers = {index: text for part, _ in everyone for index, text in part.items()}
    points = judge(questions, answers, path)
    return Answers(
        num_questions=len(answers),
        **points,
        eval_time_s=time.perf_counter() - began,
        generated_tokens=sum(count for _, count in everyone),
    )
