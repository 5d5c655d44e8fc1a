"""Say what a data set holds, and write it in another format."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from egobench.data.formats import READERS, WRITERS, root_of
from egobench.data.sample import Sample
from egobench.data.source import DataSet, collect, reader_of
from egobench.errors import InvalidInput, Mistake

NUM_TOP = 10
NUM_SIZES = 200
"""Pictures opened to list sizes; only headers are read."""


def describe(dataset: DataSet) -> dict[str, Any]:
    """Count what a data set holds: words, answers, categories, picture sizes, and what was skipped."""
    samples = dataset.samples
    answers = [sample.answers[0] for sample in samples]
    return {
        "num_samples": len(samples),
        "num_scenes": len({sample.scene for sample in samples}),
        "skipped": dict(dataset.skipped),
        "skipped_examples": [vars(item) for item in dataset.examples],
        "question_words": _words([sample.question for sample in samples]),
        "answer_words": _words(answers),
        "one_word_share": sum(len(answer.split()) == 1 for answer in answers) / max(1, len(answers)),
        "num_distinct_answers": len(set(answers)),
        "top_answers": dict(Counter(answer.lower() for answer in answers).most_common(NUM_TOP)),
        "categories": dict(sorted(Counter(sample.category for sample in samples).items())),
        "tasks": dict(sorted(Counter(sample.task for sample in samples).items())),
        "image_sizes": _sizes(dataset),
        "digest": dataset.digest,
    }


def convert(reader: str, path: Path, writer: str, out: Path) -> dict[str, int]:
    """Convert a data set; return `written` samples and skipped records by reason.

    Pictures are not copied: where `out` lies in another folder, their paths are rewritten to lead there.
    """
    _check(reader, path, writer)
    samples, skipped, _ = collect(reader_of(reader)(path))
    out.parent.mkdir(parents=True, exist_ok=True)
    moved = [_moved(sample, root_of(path), out.parent) for sample in samples]
    partial = out.with_name(out.name + ".tmp")
    lost = _writer(writer)(moved, partial)
    os.replace(partial, out)
    return {"written": len(samples) - lost.total(), **(Counter(skipped) + lost)}


def _words(texts: Sequence[str]) -> dict[str, float]:
    counts = [len(text.split()) for text in texts] or [0]
    return {"median": float(np.median(counts)), "p95": float(np.percentile(counts, 95)), "max": float(max(counts))}


def _sizes(dataset: DataSet) -> dict[str, int]:
    if dataset.stored is not None:
        _, height, width, _ = dataset.stored.shape
        return {f"{width}x{height}": len(dataset.stored)}
    paths = sorted({path for sample in dataset.samples for path in sample.media.paths})[:NUM_SIZES]
    sizes: Counter[str] = Counter()
    for path in paths:
        with Image.open(dataset.root / path) as image:
            sizes[f"{image.width}x{image.height}"] += 1
    return dict(sizes.most_common(NUM_TOP))


def _check(reader: str, path: Path, writer: str) -> None:
    mistakes = []
    if reader not in READERS:
        mistakes.append(Mistake("--format", f"unknown format {reader!r}", f"allowed: {', '.join(READERS)}", ""))
    if writer not in WRITERS:
        mistakes.append(Mistake("--to", f"cannot write {writer!r}", f"allowed: {', '.join(WRITERS)}", ""))
    if not path.exists():
        mistakes.append(Mistake(str(path), "no such file or folder", "", ""))
    if mistakes:
        raise InvalidInput(mistakes)


def _writer(name: str) -> Callable[[Iterable[Sample], Path], Counter[str]]:
    module, _, function = WRITERS[name].partition(":")
    writer: Callable[[Iterable[Sample], Path], Counter[str]] = getattr(importlib.import_module(module), function)
    return writer


def _moved(sample: Sample, source: Path, target: Path) -> Sample:
    """Rewrite picture paths from one root to another."""
    if source.resolve() == target.resolve():
        return sample
    paths = tuple(
        path if os.path.isabs(path) else Path(os.path.relpath(source / path, target)).as_posix()
        for path in sample.media.paths
    )
    return replace(sample, media=replace(sample.media, paths=paths))
