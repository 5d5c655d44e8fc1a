"""What became of a variant: how it was made, and what was measured of it in a process of its own."""

from __future__ import annotations

from typing import Any

from egobench.records.inference import InferenceMeasures
from egobench.records.measures import Answers, CategoryScore
from egobench.spec.inference import Runtime
from egobench.spec.strict import Record


class QuestionScores(Record):
    """Every question's score, so that two variants can be compared question by question."""

    digest: str
    """Names the questions and their order: scores are paired only where it is equal."""
    em: tuple[int, ...]
    """0 or 1."""
    f1: tuple[float, ...]
    """0 to 1."""
    categories: tuple[int, ...] = ()
    """Place of each question's category in `VariantMeasures.categories`; older records do not say it."""


class VariantMeasures(Record):
    """One model, in one runtime."""

    kind: str
    runtime: Runtime
    lineage: tuple[str, ...]
    """Names of the variants that it is made from, the oldest first, and its own."""
    num_parameters: int
    """Of the model before its weights were given fewer bits."""
    make_time_s: float | None = None
    """Quantizing or converting; None where the model was trained, or left as it was."""
    facts: dict[str, Any] = {}
    """What its maker says: library, bits, calibration, modules left alone."""
    inference: InferenceMeasures
    answers: Answers | None = None
    """None where nothing is asked."""
    categories: tuple[CategoryScore, ...] = ()
    scores: QuestionScores | None = None
    versions: dict[str, str] = {}
    """Of the runtime's packages."""
