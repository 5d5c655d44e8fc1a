"""ms-swift's messages JSONL: `messages` of `role`/`content` turns and a list `images`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from egobench.data.formats.talk import Talk, read_talks, write_talks
from egobench.data.sample import BadRecord, Sample, Skipped

_ROLES = ("user", "assistant", "system")


def read(path: Path) -> Iterator[Sample | Skipped]:
    """Read one sample per user-assistant pair."""
    return read_talks(path, "messages", _parse)


def write(samples: Iterable[Sample], out: Path) -> Counter[str]:
    """Write ms-swift's layout."""
    return write_talks(samples, out, _render)


def _parse(record: dict[str, Any]) -> Talk:
    used = ("id", "images", "videos", "messages")
    return Talk(
        id=record.get("id"),
        images=tuple(record.get("images") or ()),
        is_list=True,
        turns=tuple(_turn(turn) for turn in record.get("messages") or ()),
        videos=tuple(record.get("videos") or ()),
        extra={key: value for key, value in record.items() if key not in used},
    )


def _turn(turn: dict[str, Any]) -> tuple[str, str]:
    role, text = turn.get("role"), turn.get("content")
    if role not in _ROLES or not isinstance(text, str):
        raise BadRecord("bad_turns", f"a turn needs a role {'|'.join(_ROLES)} and a content: {str(turn)[:80]}")
    return role, text


def _render(talk: Talk) -> dict[str, Any]:
    record: dict[str, Any] = {} if talk.id is None else {"id": talk.id}
    record |= {"messages": [{"role": role, "content": text} for role, text in talk.turns]}
    return record | {"images": list(talk.images)} | talk.extra
