"""Measure what egotiny sees: its lift by a short fine-tune, against the same training without pictures.

`python -m egobench.models.lift` prints one JSON document. A model that only reads the question is trained and
asked on grey pictures; the best constant answer per question text stands beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from egobench.data.sample import Sample
from egobench.data.source import DataSet, load
from egobench.models.answer import generate_answers
from egobench.models.internvl import LoadedModel, build
from egobench.models.pixels import from_uint8
from egobench.models.prompt import IGNORED, Encoded, EncodedSet, encode_all

GREY = 128


@dataclass(frozen=True)
class Recipe:
    """A short fine-tune: linear warm-up, then linear decay to zero; AdamW without weight decay."""

    steps: int = 40
    batch_size: int = 32
    peak_lr: float = 1.5e-3
    warmup: int = 4
    seed: int = 0

    def lr(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step < self.warmup:
            return self.peak_lr * (step + 1) / self.warmup
        return self.peak_lr * (self.steps - step) / (self.steps - self.warmup)


def finetune(loaded: LoadedModel, data: DataSet, recipe: Recipe, *, is_blind: bool) -> float:
    """Train in place on single-turn samples; return seconds per step."""
    train = _encoded(loaded, data.samples)
    order = list(range(len(train.encoded)))
    random.Random(recipe.seed).shuffle(order)
    model, start = loaded.model.train(), time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak_lr, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(recipe.steps):
        rows = [order[(step * recipe.batch_size + i) % len(order)] for i in range(recipe.batch_size)]
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr(step)
        ids, labels, mask = _right_padded([train.encoded[row] for row in rows], loaded.pad_token_id)
        pixels = from_uint8(_pictures(loaded, data, [train.samples[row] for row in rows], is_blind))
        model(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    return (time.perf_counter() - start) / recipe.steps


def exact_match(loaded: LoadedModel, data: DataSet, *, is_blind: bool) -> float:
    """Return the share of greedy answers that equal the reference."""
    kept = _encoded(loaded, data.samples)
    pictures = _pictures(loaded, data, kept.samples, is_blind)
    answers = generate_answers(loaded, kept.encoded, pictures, batch_size=128, max_new_tokens=48)
    hits = [answer == sample.answers[0] for answer, sample in zip(answers, kept.samples, strict=True)]
    return sum(hits) / len(hits)


def constant_answers(train: Sequence[Sample], asked: Sequence[Sample]) -> float:
    """Score the most frequent training answer of the same question, or else of the same question type."""
    by_key: dict[str, Counter[str]] = {}
    for sample in train:
        for key in (sample.question, f"type {sample.category}"):
            by_key.setdefault(key, Counter())[sample.answers[0]] += 1
    hits = 0
    for sample in asked:
        seen = by_key.get(sample.question) or by_key.get(f"type {sample.category}") or Counter([""])
        hits += seen.most_common(1)[0][0] == sample.answers[0]
    return hits / len(asked)


def measure(domain: str, recipe: Recipe, num_train: int, num_validation: int, model: dict[str, Any]) -> dict[str, Any]:
    """Score a domain before and after the fine-tune, seeing and blind."""
    spec = {"format": "egoworld", "domain": domain, "num_train": num_train, "num_validation": num_validation}
    train, validation = load(spec, "train", recipe.seed), load(spec, "validation", recipe.seed)
    result: dict[str, Any] = {"domain": domain, "constant": constant_answers(train.samples, validation.samples)}
    for name, is_blind in (("seeing", False), ("blind", True)):
        loaded = build(model, attention="sdpa", dtype=torch.float32, device=torch.device("cpu"), seed=0)
        result[f"{name}_before"] = exact_match(loaded, validation, is_blind=is_blind)
        result[f"{name}_step_time_s"] = finetune(loaded, train, recipe, is_blind=is_blind)
        result[f"{name}_after"] = exact_match(loaded, validation, is_blind=is_blind)
    return result


def _encoded(loaded: LoadedModel, samples: Sequence[Sample]) -> EncodedSet:
    return encode_all(samples, loaded.tokenizer, loaded.num_image_tokens, max_length=512)


def _pictures(loaded: LoadedModel, data: DataSet, samples: Sequence[Sample], is_blind: bool) -> Any:
    pictures = data.pixels(samples, loaded.image_px)
    return np.full_like(pictures, GREY) if is_blind else pictures


def _right_padded(items: Sequence[Encoded], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (len(items), max(len(item.input_ids) for item in items))
    ids, labels = torch.full(shape, pad_id), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, item in enumerate(items):
        ids[row, : len(item.input_ids)] = torch.tensor(item.input_ids)
        labels[row, : len(item.labels)] = torch.tensor(item.labels)
        mask[row, : len(item.input_ids)] = 1
    return ids, labels, mask


def main() -> None:
    """Print EM before and after a short fine-tune, seeing and blind, for both domains."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="", help="checkpoint folder; default: the shipped egotiny")
    parser.add_argument("--domains", nargs="+", default=["home", "workshop"])
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--lr", type=float, default=Recipe.peak_lr)
    parser.add_argument("--num-train", type=int, default=2048)
    parser.add_argument("--num-validation", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(2)
    model = {"path": args.model} if args.model else {"name": "egotiny"}
    recipe = Recipe(steps=args.steps, peak_lr=args.lr)
    print(json.dumps([measure(name, recipe, args.num_train, args.num_validation, model) for name in args.domains]))


if __name__ == "__main__":
    main()
