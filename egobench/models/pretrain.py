"""Pretrain egotiny on the home domain of egoworld and write the folder that is shipped.

`python -m egobench.models.pretrain --out DIR`: one process, plain AdamW. Scenes are drawn fresh for every step,
and all questions of a scene stand in one conversation, so that a picture is encoded once for several answers;
the first turn looks exactly like the single-turn prompt of `prompt.encode`.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from egobench.data.egoworld.generate import Recipe, generate, scenes
from egobench.data.egoworld.questions import by_kind, by_place
from egobench.data.egoworld.scene import Scene
from egobench.data.sample import Sample
from egobench.models.answer import generate_answers
from egobench.models.internvl import LoadedModel, build
from egobench.models.pixels import from_uint8
from egobench.models.prompt import IGNORED, START, encode_all

ENDLESS = 10**9
FIRST_WORD = 262
"""Token ids below are special tokens and single bytes; of those only digits are echoed."""
NUM_ECHOED = 12


@dataclass(frozen=True)
class Settings:
    """What the command line sets."""

    out: Path = Path(__file__).parent / "egotiny"
    start: str = ""
    """Folder to go on from; empty: random weights."""
    steps: int = 2000
    """Length of the learning-rate schedule."""
    stop: int = 0
    """Step to end at; 0: `steps`."""
    batch_size: int = 64
    questions: int = 4
    """Questions a scene, before the listing."""
    listing: str = "place"
    """`place`: the scene is listed place by place; `both`: half of the scenes kind by kind."""
    echo: float = 0.0
    """Share of conversations that end with repeated words instead of a listing."""
    lr: float = 2e-3
    warmup: int = 100
    seed: int = 0
    every: int = 200


@dataclass(frozen=True)
class Batch:
    """Conversations padded on the right, and their pictures."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    pixels: torch.Tensor


def conversation(loaded: LoadedModel, group: Sequence[Sample]) -> tuple[list[int], list[int]]:
    """Chain the questions of one scene; the picture stands in the first turn only."""
    turns = encode_all(group, loaded.tokenizer, loaded.num_image_tokens, max_length=ENDLESS).encoded
    reopen = loaded.tokenizer(f"\n{START}user\n", add_special_tokens=False)["input_ids"]
    head = loaded.tokenizer(f"{START}user\n<img>", add_special_tokens=False)["input_ids"]
    skip = (
        len(head) + loaded.num_image_tokens + len(loaded.tokenizer("</img>\n", add_special_tokens=False)["input_ids"])
    )
    ids, labels = list(turns[0].input_ids), list(turns[0].labels)
    for turn in turns[1:]:
        ids += [*reopen, *turn.input_ids[skip:]]
        labels += [*([IGNORED] * len(reopen)), *turn.labels[skip:]]
    return ids, labels


def spelled_out(scene: Scene, sample: Sample, listing: str) -> Sample:
    """Make the last turn of a conversation: the whole scene, which teaches the vision tower fastest."""
    is_by_place = listing == "place" or int(scene.key[-1], 16) % 2 == 0
    asked = by_place(scene) if is_by_place else by_kind(scene)
    return replace(sample, question=asked.question, answers=(asked.answer,), category=asked.kind)


def echo(loaded: LoadedModel, sample: Sample, rng: random.Random) -> Sample:
    """Make a turn that repeats random tokens, so that words the home domain never uses stay learnable."""
    digits = loaded.tokenizer.convert_tokens_to_ids(list("0123456789"))
    pool = [*digits, *range(FIRST_WORD, len(loaded.tokenizer))]
    ids = [rng.choice(pool) for _ in range(NUM_ECHOED)]
    text = loaded.tokenizer.decode(ids).strip()
    return replace(sample, question=f"repeat {text}?", answers=(text,), category="echo")


def batches(loaded: LoadedModel, settings: Settings) -> Iterator[Batch]:
    """Draw fresh scenes for ever."""
    recipe = Recipe("home", "train", ENDLESS, settings.seed, loaded.image_px, settings.questions)
    stream, rng = scenes(recipe), random.Random(settings.seed)
    while True:
        drawn = list(islice(stream, settings.batch_size))
        talks = []
        for scene, _, group in drawn:
            is_echo = rng.random() < settings.echo
            last = echo(loaded, group[0], rng) if is_echo else spelled_out(scene, group[0], settings.listing)
            talks.append(conversation(loaded, [*group, last]))
        yield _padded(talks, np.stack([picture for _, picture, _ in drawn]), loaded.pad_token_id)


def _padded(talks: Sequence[tuple[list[int], list[int]]], pictures: npt.NDArray[np.uint8], pad_id: int) -> Batch:
    shape = (len(talks), max(len(ids) for ids, _ in talks))
    ids, labels = torch.full(shape, pad_id), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, (talk_ids, talk_labels) in enumerate(talks):
        ids[row, : len(talk_ids)] = torch.tensor(talk_ids)
        labels[row, : len(talk_ids)] = torch.tensor(talk_labels)
        mask[row, : len(talk_ids)] = 1
    return Batch(ids, labels, mask, from_uint8(pictures))


def exact_match(loaded: LoadedModel, recipe: Recipe, *, is_blank: bool = False) -> dict[str, float]:
    """Score greedy answers on a generated set: overall (key `all`) and by question type."""
    made = generate(recipe)
    images: npt.NDArray[np.uint8] = made.images[[sample.meta["image_index"] for sample in made.samples]]
    if is_blank:
        images = np.full_like(images, 128)
    kept = encode_all(made.samples, loaded.tokenizer, loaded.num_image_tokens, 512)
    answers = generate_answers(loaded, kept.encoded, images, batch_size=128)
    hits: dict[str, list[bool]] = {"all": []}
    for sample, answer in zip(made.samples, answers, strict=True):
        for key in ("all", sample.category):
            hits.setdefault(key, []).append(answer == sample.answers[0])
    return {key: sum(values) / len(values) for key, values in hits.items()}


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Warm up linearly, then fall along a cosine to a fiftieth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def pretrain(settings: Settings) -> None:
    """Train, score every `every` steps, and keep the best weights in `out`."""
    loaded, best, start = _start(settings), -1.0, time.time()
    optimizer = _optimizer(loaded.model, settings.lr)
    validation = Recipe("home", "validation", 512, 0, loaded.image_px)
    last = settings.stop or settings.steps
    for step, batch in enumerate(islice(batches(loaded, settings), last)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.steps, settings.lr, settings.warmup)
        loss = _update(loaded.model.train(), optimizer, batch)
        if step % 20 == 0:
            print(f"step {step} loss {loss:.4f} elapsed_s {time.time() - start:.0f}", flush=True)
        if (step + 1) % settings.every == 0 or step + 1 == last:
            scores = exact_match(loaded, validation)
            print(f"step {step + 1} validation EM " + " ".join(f"{k}={v:.2f}" for k, v in scores.items()), flush=True)
            if scores["all"] > best:
                best = scores["all"]
                loaded.model.save_pretrained(settings.out)
                loaded.tokenizer.save_pretrained(settings.out)


def _start(settings: Settings) -> LoadedModel:
    spec = {"path": settings.start} if settings.start else {"name": "egotiny", "weights": "random"}
    loaded = build(spec, attention="sdpa", dtype=torch.float32, device=torch.device("cpu"), seed=settings.seed)
    if not settings.start:  # transformers leaves them at zero
        torch.nn.init.normal_(loaded.model.model.vision_tower.embeddings.position_embeddings, std=0.02)
    return loaded


def _optimizer(model: Any, lr: float) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def _update(model: Any, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    with torch.autocast("cpu", torch.bfloat16):  # a third faster where the CPU has bf16 instructions
        loss = model(
            input_ids=batch.input_ids, attention_mask=batch.mask, pixel_values=batch.pixels, labels=batch.labels
        ).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.item())


def main() -> None:
    """Pretrain egotiny on one CPU."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for field in fields(Settings):
        kind = Path if field.name == "out" else type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    torch.set_num_threads(2)
    pretrain(Settings(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
