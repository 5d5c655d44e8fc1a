"""What the sharegpt and messages formats share: a conversation about pictures, and its samples.

A conversation becomes one sample per question-answer pair. What a sample cannot say (the original id, where
`<image>` stood, unknown keys) stays in `meta`, and what a conversation cannot say (further answers, choices,
the category) is carried under the key `egobench`, so that converting there and back loses nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from egobench.data.formats import root_of
from egobench.data.formats.check import checked, json_lines, notes
from egobench.data.sample import BadRecord, Media, Sample, Skipped, from_record, to_record

IMAGE_TAG = "<image>"
CARRY = "egobench"
ORIGIN = "talk"


@dataclass(frozen=True)
class Talk:
    """One conversation, free of the field names of any format."""

    id: Any
    images: tuple[str, ...]
    is_list: bool
    """Whether the pictures stood in a list rather than as one path."""
    turns: tuple[tuple[str, str], ...]
    """(role, text); roles are system, user and assistant."""
    videos: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    """Keys of `extra` that the format knows, not worth a note."""


Parse = Callable[[dict[str, Any]], Talk]
Render = Callable[[Talk], dict[str, Any]]


def read_talks(path: Path, source: str, parse: Parse) -> Iterator[Sample | Skipped]:
    """Read a JSONL of conversations."""
    for where, record in json_lines(path):
        if isinstance(record, Skipped):
            yield record
            continue
        try:
            talk = parse(record)
            samples = list(_samples(talk, source, where))
        except BadRecord as error:
            yield Skipped(where, error.reason, error.detail)
            continue
        yield from notes(sorted(set(talk.extra) - talk.known - {CARRY}), where)
        for sample in samples:
            yield checked(sample, root_of(path), where)


def write_talks(samples: Iterable[Sample], out: Path, render: Render) -> Counter[str]:
    """Write conversations; pairs of one original conversation are joined again."""
    skipped: Counter[str] = Counter()
    with out.open("w", encoding="utf-8") as file:
        for _, group in groupby(samples, key=_group):
            members = list(group)
            if members[0].media.type == "video":
                skipped["video_unsupported"] += len(members)
                continue
            file.write(json.dumps(render(_talk(members)), ensure_ascii=False) + "\n")
    return skipped


def _samples(talk: Talk, source: str, where: str) -> Iterator[Sample]:
    spoken = [(role, text) for role, text in talk.turns if role != "system"]
    if not spoken or len(spoken) % 2 or any(role != ("user", "assistant")[i % 2] for i, (role, _) in enumerate(spoken)):
        raise BadRecord("bad_turns", "turns of human and model do not alternate")
    num_tags = sum(text.count(IMAGE_TAG) for _, text in spoken)
    if num_tags != len(talk.images) and not talk.videos:
        raise BadRecord("image_count", f"{num_tags} {IMAGE_TAG} for {len(talk.images)} pictures")
    origin: dict[str, Any] = {"group": where, "id": talk.id, "is_list": talk.is_list}
    system = [text for role, text in talk.turns if role == "system"]
    if system:
        origin["system"] = system[0]
    pairs = list(zip(spoken[::2], spoken[1::2], strict=True))
    for turn, ((_, asked), (_, answer)) in enumerate(pairs):
        question = asked.replace(IMAGE_TAG, "").strip()
        own = origin if asked == _asked(question, talk.images, turn) else origin | {"asked": asked}
        yield _sample(talk, source, own | {"turn": turn}, question, answer, len(pairs))


def _sample(talk: Talk, source: str, origin: dict[str, Any], question: str, answer: str, num_turns: int) -> Sample:
    if CARRY in talk.extra:
        carried = from_record(talk.extra[CARRY])
        return replace(carried, question=question, answers=(answer, *carried.answers[1:]))
    name = str(talk.id) if talk.id is not None else str(origin["group"])
    paths = talk.videos or talk.images
    kind = "video" if talk.videos else "image" if len(paths) == 1 else "frames"
    return Sample(
        id=name if num_turns == 1 else f"{name}/{origin['turn']}",
        source=source,
        task="binary" if answer.strip().lower().rstrip(".") in ("yes", "no") else "open",
        media=Media(kind, paths),  # type: ignore[arg-type]
        question=question,
        answers=(answer,),
        scene="|".join(paths),
        meta={**talk.extra, ORIGIN: origin},
    )


def _asked(question: str, images: tuple[str, ...], turn: int) -> str:
    """Write a human turn the usual way: all pictures before the first question."""
    return f"{IMAGE_TAG}\n" * (len(images) if turn == 0 else 0) + question


def _group(sample: Sample) -> str:
    origin = sample.meta.get(ORIGIN)
    return f"talk {origin['group']}" if origin else f"sample {sample.id}"


def _talk(members: list[Sample]) -> Talk:
    first = members[0]
    images = first.media.paths
    origin = first.meta.get(ORIGIN)
    if origin is None:
        carry = {CARRY: to_record(first)}
        turns = (("user", _asked(first.question, images, 0)), ("assistant", first.answers[0]))
        return Talk(first.id, images, len(images) != 1, turns, extra=carry)
    spoken: list[tuple[str, str]] = [("system", origin["system"])] if "system" in origin else []
    for turn, sample in enumerate(members):
        asked = sample.meta[ORIGIN].get("asked") or _asked(sample.question, images, turn)
        spoken += [("user", asked), ("assistant", sample.answers[0])]
    extra = {key: value for key, value in first.meta.items() if key != ORIGIN}
    return Talk(origin["id"], images, origin["is_list"], tuple(spoken), extra=extra)
