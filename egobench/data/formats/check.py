"""What every reader checks before a sample counts: text, pictures that exist and decode."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from egobench.data.sample import BadRecord, Sample, Skipped

PROBE_PX = 64


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | Skipped]]:
    """Read a JSONL file: (`file:line`, object), or what is wrong with the line; blank lines are passed over."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                yield where, Skipped(where, "bad_json", str(error))
                continue
            if isinstance(record, dict):
                yield where, record
            else:
                yield where, Skipped(where, "bad_json", f"not an object but {type(record).__name__}")


def checked(sample: Sample, root: Path, where: str) -> Sample | Skipped:
    """Return the sample, or why it cannot be used."""
    try:
        _check_text(sample)
        _check_media(sample, root)
    except BadRecord as error:
        return Skipped(where, error.reason, error.detail)
    return sample


def notes(keys: Iterable[str], where: str) -> Iterator[Skipped]:
    """Note keys that the format does not know; the sample itself is kept, with them in `meta`."""
    for key in keys:
        yield Skipped(where, "unknown_key", key)


def _check_text(sample: Sample) -> None:
    if not sample.question.strip():
        raise BadRecord("empty_question", sample.id)
    if not sample.answers or not all(answer.strip() for answer in sample.answers):
        raise BadRecord("empty_answer", sample.id)


def _check_media(sample: Sample, root: Path) -> None:
    if sample.media.type == "video":
        raise BadRecord("video_unsupported", ", ".join(sample.media.paths))
    if not sample.media.paths:
        raise BadRecord("no_image", sample.id)
    for path in sample.media.paths:
        check_image(root / path)


def check_image(path: Path) -> None:
    """Decode a picture; JPEGs at an eighth of the size, which still reads the whole file."""
    if not path.is_file():
        raise BadRecord("missing_image", str(path))
    try:
        with Image.open(path) as image:
            image.draft("RGB", (PROBE_PX, PROBE_PX))
            image.load()
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises on damaged files
        raise BadRecord("broken_image", f"{path}: {error}") from error
