"""Score a file of predictions, wherever it came from. No torch: `egobench score` runs on a login node."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from egobench.errors import InvalidInput, Mistake, nearest
from egobench.evaluate import answers

METRICS: Final[dict[str, str]] = {"squad": "egobench.evaluate.score:squad"}
"""Metric -> the function that scores a list of predictions."""

_MAX_MISTAKES: Final = 50


@dataclass(frozen=True)
class Prediction:
    """One line of a predictions file; other keys are ignored."""

    id: str
    prediction: str
    references: tuple[str, ...]
    """Accepted answers; none: the question has no answer, and only saying nothing is right (SQuAD v2)."""


def score_file(path: Path, metric: str = "squad") -> dict[str, Any]:
    """Score a JSONL file of `{"id", "prediction", "references": [...]}`.

    Raises:
        InvalidInput: an unknown metric, or every bad line of the file.
    """
    if metric not in METRICS:
        allowed = f"allowed: {', '.join(METRICS)}"
        raise InvalidInput([Mistake("--metric", f"'{metric}' is unknown", allowed, nearest(metric, METRICS))])
    module, _, attribute = METRICS[metric].partition(":")
    judge: Callable[[Sequence[Prediction]], dict[str, Any]] = getattr(importlib.import_module(module), attribute)
    return {"schema_version": 1, **judge(read_predictions(path))}


def squad(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return EM and F1 by the SQuAD v2 rule, 0-1: means with bootstrap intervals, and one record a prediction."""
    em = [answers.exact_match(item.prediction, item.references) for item in predictions]
    f1 = [answers.f1(item.prediction, item.references) for item in predictions]
    em_mean, f1_mean = answers.bootstrap_mean(em), answers.bootstrap_mean(f1)
    return {
        "metric": "squad_v2",
        "num": len(predictions),
        "em": em_mean.mean, "em_low": em_mean.low, "em_high": em_mean.high,
        "f1": f1_mean.mean, "f1_low": f1_mean.low, "f1_high": f1_mean.high,
        "records": [{"id": p.id, "em": e, "f1": f} for p, e, f in zip(predictions, em, f1, strict=True)],
    }  # fmt: skip


def read_predictions(path: Path) -> list[Prediction]:
    """Read a predictions file; empty lines are skipped.

    Raises:
        InvalidInput: every line that is not a prediction, as `file:line`; or there is none.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InvalidInput([Mistake(str(path), f"cannot be read: {error.strerror}")]) from error
    mistakes: list[Mistake] = []
    predictions: list[Prediction] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found = _parse(line, f"{path}:{number}")
            if isinstance(found, Mistake):
                mistakes.append(found)
            elif found.id in seen:
                what = f"id {found.id!r} was already given on line {seen[found.id]}"
                mistakes.append(Mistake(f"{path}:{number}", what, "allowed: each id once"))
            else:
                seen[found.id] = number
                predictions.append(found)
    if mistakes:
        raise InvalidInput(_shortened(mistakes, path))
    if not predictions:
        raise InvalidInput([Mistake(str(path), "holds no predictions", "allowed: one JSON object per line")])
    return predictions


def _parse(line: bytes, where: str) -> Prediction | Mistake:
    shape = 'allowed: {"id": text, "prediction": text, "references": [text, ...]}'
    try:
        data = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return Mistake(where, f"is not JSON: {error}", shape)
    if not isinstance(data, dict):
        return Mistake(where, f"is a JSON {type(data).__name__}, not an object", shape)
    missing = [key for key in ("id", "prediction", "references") if key not in data]
    if missing:
        return Mistake(where, f"lacks {', '.join(missing)}", shape)
    references = data["references"]
    wrong = [f"{key} is {data[key]!r}" for key in ("id", "prediction") if not isinstance(data[key], str)]
    if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
        wrong.append(f"references is {references!r}")
    if wrong:
        return Mistake(where, "; ".join(wrong), shape)
    return Prediction(data["id"], data["prediction"], tuple(references))


def _shortened(mistakes: list[Mistake], path: Path) -> list[Mistake]:
    if len(mistakes) <= _MAX_MISTAKES:
        return mistakes
    return [*mistakes[:_MAX_MISTAKES], Mistake(str(path), f"and {len(mistakes) - _MAX_MISTAKES} more bad lines")]
