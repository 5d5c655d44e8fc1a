"""Exact match and F1 of short answers, by the SQuAD v2 rule.

Both sides empty after normalisation count as a match in EM and F1 (so F1 >= EM always holds);
references that normalise to nothing are dropped unless all do. Reproduces the official
`squad_v2/compute_score.py` (huggingface/evaluate a7dd3383).
"""

from __future__ import annotations

import collections
import random
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower-case, drop ASCII punctuation and English articles, collapse white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1.0 if the prediction equals any reference after normalisation, else 0.0."""
    given = normalise(prediction)
    return max(float(given == normalise(reference)) for reference in _answerable(references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """Return the best token overlap F1 (multisets of normalised words) over the references."""
    given = normalise(prediction).split()
    return max(_overlap_f1(given, normalise(reference).split()) for reference in _answerable(references))


def _answerable(references: Sequence[str]) -> Sequence[str]:
    return [reference for reference in references if normalise(reference)] or [""]


def _overlap_f1(given: list[str], wanted: list[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    common = sum((collections.Counter(given) & collections.Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: Sequence[float], *, confidence: float = 0.95, num_draws: int = 1000) -> Interval:
    """Return the mean and its percentile bootstrap interval over the values (questions).

    Seeded: the same values always give the same interval, so committed tables can be re-derived.
    """
    if not values:
        return Interval(float("nan"), float("nan"), float("nan"))
    draw = random.Random(0)
    size = len(values)
    means = sorted(sum(draw.choices(values, k=size)) / size for _ in range(num_draws))
    tail = (1 - confidence) / 2
    low, high = (means[min(num_draws - 1, int(share * num_draws))] for share in (tail, 1 - tail))
    return Interval(sum(values) / size, low, high)
