"""EgoThink: `<Category>[/<sub>]/annotations.json` lists beside `images/` (AdaCheng/EgoThink @fbafe8f)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from egobench.data.formats.check import checked, notes
from egobench.data.sample import BadRecord, Media, Sample, Skipped

_KEYS = frozenset(("source_dataset", "image_path", "question", "answer"))


def read(path: Path) -> Iterator[Sample | Skipped]:
    """Read all categories below a folder, in the order of their names."""
    for file in sorted(path.rglob("annotations.json")):
        category = file.parent.relative_to(path).as_posix()
        try:
            records = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            yield Skipped(f"{category}/annotations.json", "bad_json", str(error))
            continue
        for index, record in enumerate(records):
            yield from _record(record, f"{category}/{index}", category, path)


def _record(record: dict[str, Any], name: str, category: str, root: Path) -> Iterator[Sample | Skipped]:
    unknown = sorted(set(record) - _KEYS)
    yield from notes(unknown, name)
    try:
        sample = _sample(record, name, category, unknown)
    except BadRecord as error:
        yield Skipped(name, error.reason, error.detail)
        return
    good = checked(sample, root, name)
    # The same frame can stand in two categories under two names: its content is the split key.
    yield replace(good, scene=_content(good, root)) if isinstance(good, Sample) else good


def _sample(record: dict[str, Any], name: str, category: str, unknown: list[str]) -> Sample:
    images, question, answer = (record.get(key) for key in ("image_path", "question", "answer"))
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise BadRecord("bad_record", "image_path is not a list of text")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise BadRecord("bad_record", "question or answer is not text")
    paths = tuple(f"{category}/images/{image}" for image in images)
    return Sample(
        id=name,
        source=f"egothink-{record.get('source_dataset', 'unknown')}",
        task="binary" if answer.strip().lower().rstrip(".") in ("yes", "no") else "open",
        media=Media("image" if len(paths) == 1 else "frames", paths),
        question=question,
        answers=(answer,),
        category=category,
        meta={key: record[key] for key in unknown},
    )


def _content(sample: Sample, root: Path) -> str:
    digest = hashlib.sha256()
    for path in sample.media.paths:
        digest.update((root / path).read_bytes())
    return digest.hexdigest()[:16]
