"""The one sample type that every data set is read into, and its JSON record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

MediaType = Literal["image", "frames", "video"]
Task = Literal["open", "mcq", "ground", "binary"]

_RECORD_KEYS = frozenset(
    ("id", "source", "task", "media", "question", "answers", "choices", "answer_index", "category", "scene", "meta")
)
_MEDIA_KEYS = {"type": "type", "paths": "paths", "fps": "fps", "start_sec": "start_s", "end_sec": "end_s"}


@dataclass(frozen=True)
class Media:
    """What is looked at; paths are relative to the root of the data set."""

    type: MediaType
    paths: tuple[str, ...]
    fps: float | None = None
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Sample:
    """One question about one picture, clip or list of frames, with every accepted answer."""

    id: str
    source: str
    task: Task
    media: Media
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    answer_index: int | None = None
    category: str = ""
    scene: str = ""
    """What a split must not cut through: the image, clip or scene that samples share."""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A record that was not used, or (reason `unknown_key`) a note about one that was."""

    where: str
    reason: str
    detail: str


class BadRecord(ValueError):
    """A record that cannot become a sample; `reason` is what skipped records are counted by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def to_record(sample: Sample) -> dict[str, Any]:
    """Write a sample as a JSON object, leaving out what is empty."""
    media: dict[str, Any] = {"type": sample.media.type, "paths": list(sample.media.paths)}
    for key, name in _MEDIA_KEYS.items():
        value = getattr(sample.media, name)
        if key not in media and value is not None:
            media[key] = value
    record: dict[str, Any] = {
        "id": sample.id, "source": sample.source, "task": sample.task, "media": media,
        "question": sample.question, "answers": list(sample.answers),
    }  # fmt: skip
    optional = {
        "choices": list(sample.choices), "answer_index": sample.answer_index,
        "category": sample.category, "scene": sample.scene, "meta": sample.meta,
    }  # fmt: skip
    return record | {key: value for key, value in optional.items() if value not in (None, "", [], {})}


def unknown_keys(record: Mapping[str, Any]) -> list[str]:
    """Name the keys of a record that `from_record` keeps in `meta`."""
    return sorted(set(record) - _RECORD_KEYS)


def from_record(record: Mapping[str, Any]) -> Sample:
    """Read a JSON object; raise `BadRecord` with the reason where it cannot be a sample."""
    media = _media(record.get("media"))
    meta = dict(record.get("meta") or {}) | {key: record[key] for key in unknown_keys(record)}
    answers = record.get("answers")
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise BadRecord("bad_record", "answers is not a list of text")
    question = record.get("question")
    if not isinstance(question, str):
        raise BadRecord("bad_record", "question is not text")
    task = record.get("task", "open")
    if task not in get_args(Task):
        raise BadRecord("bad_record", f"task {task!r} is not one of {', '.join(get_args(Task))}")
    return Sample(
        id=str(record.get("id", "")),
        source=str(record.get("source", "")),
        task=cast("Task", task),
        media=media,
        question=question,
        answers=tuple(answers),
        choices=tuple(record.get("choices", ())),
        answer_index=record.get("answer_index"),
        category=str(record.get("category", "")),
        scene=str(record.get("scene", "")) or "|".join(media.paths),
        meta=meta,
    )


def _media(value: Any) -> Media:
    if not isinstance(value, Mapping) or value.get("type") not in get_args(MediaType):
        raise BadRecord("bad_record", f"media.type is not one of {', '.join(get_args(MediaType))}")
    paths = value.get("paths")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise BadRecord("bad_record", "media.paths is not a list of text")
    return Media(value["type"], tuple(paths), value.get("fps"), value.get("start_sec"), value.get("end_sec"))
