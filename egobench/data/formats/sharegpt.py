"""InternVL's and LLaMA-Factory's sharegpt JSONL: `conversations` of `from`/`value` turns, `image` one or a list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from egobench.data.formats.talk import Talk, read_talks, write_talks
from egobench.data.sample import BadRecord, Sample, Skipped

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_FROM = {"user": "human", "assistant": "gpt", "system": "system"}
_KNOWN = frozenset(("width", "height", "width_list", "height_list"))


def read(path: Path) -> Iterator[Sample | Skipped]:
    """Read one sample per human-gpt pair."""
    return read_talks(path, "sharegpt", _parse)


def write(samples: Iterable[Sample], out: Path) -> Counter[str]:
    """Write InternVL's layout; a single picture as text, several as a list."""
    return write_talks(samples, out, _render)


def _parse(record: dict[str, Any]) -> Talk:
    image, video = record.get("image", []), record.get("video", [])
    extra = {key: value for key, value in record.items() if key not in ("id", "image", "video", "conversations")}
    return Talk(
        id=record.get("id"),
        images=tuple([image] if isinstance(image, str) else image),
        is_list=not isinstance(image, str),
        turns=tuple(_turn(turn) for turn in record.get("conversations") or ()),
        videos=tuple([video] if isinstance(video, str) else video),
        extra=extra,
        known=_KNOWN,
    )


def _turn(turn: dict[str, Any]) -> tuple[str, str]:
    role, text = _ROLES.get(str(turn.get("from"))), turn.get("value")
    if role is None or not isinstance(text, str):
        raise BadRecord("bad_turns", f"a turn needs from human|gpt|system and a value: {str(turn)[:80]}")
    return role, text


def _render(talk: Talk) -> dict[str, Any]:
    record: dict[str, Any] = {} if talk.id is None else {"id": talk.id}
    if talk.images:
        record["image"] = list(talk.images) if talk.is_list else talk.images[0]
    turns = [{"from": _FROM[role], "value": text} for role, text in talk.turns]
    return record | talk.extra | {"conversations": turns}
