"""Accuracy that a variant lost to the unchanged model, of all questions and of each category, paired by question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from egobench.records.variant import VariantMeasures
from egobench.report.rows import CellRow
from egobench.report.stats import Summary, Verdict, judge, summarise

RESAMPLES: Final = 2000
LEAST_QUESTIONS: Final = 10
"""Of fewer no interval is given: all resamples of one question are that question."""
SCORES: Final = ("em", "f1")
Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CategoryLoss:
    """The questions of one category: what a variant still answers, and what it lost."""

    category: str
    num_questions: int
    kept: dict[str, Summary]
    """em, f1 -> points over the trials."""
    lost: dict[str, Summary]
    """em, f1 -> points lost to the reference; low and high are 95 % over the category's questions,
    where there are `LEAST_QUESTIONS`."""


def verdict_of(lost: Summary) -> Verdict:
    """Return `worse` only where the whole interval lies above no loss."""
    return judge(lost, neutral=0.0, higher_is_better=False)


def measures_of(cell: CellRow) -> dict[int, VariantMeasures]:
    """Return trial -> what a variant's trial measured, of those that ended ok."""
    documents = {row.trial: row.document for row in cell.trials if row.outcome == "ok"}
    return {trial: one.variant for trial, one in documents.items() if one is not None and one.variant is not None}


def accuracy_drop(cell: CellRow, reference: CellRow, name: str) -> Summary | None:
    """Return the points lost to the reference, the mean over trials and questions; 95 % bootstrap over questions.

    A question counts once however many trials asked it: what differs from question to question is the noise.
    """
    losses = _losses(_pairs(cell, reference), name)
    return None if losses is None else _over_questions(*losses)


def category_losses(cell: CellRow, reference: CellRow) -> tuple[CategoryLoss, ...]:
    """Return the same for each category; nothing where the records do not say which question is of which."""
    pairs = _pairs(cell, reference)
    scores = pairs[0][0].scores if pairs else None
    if scores is None or not scores.categories:
        return ()
    of, found = np.asarray(scores.categories), {name: _losses(pairs, name) for name in SCORES}
    lines = []
    for number, category in enumerate(one.category for one in pairs[0][0].categories):
        own = [next(one for one in left.categories if one.category == category) for left, _ in pairs]
        kept = {name: summarise([float(getattr(one, name)) for one in own]) for name in SCORES}
        lost = {name: _over_questions(one[0][of == number], one[1]) for name, one in found.items() if one is not None}
        known = {name: one for name, one in kept.items() if one is not None}
        lines.append(CategoryLoss(category, own[0].num_questions, known, lost))
    return tuple(lines)


def _pairs(cell: CellRow, reference: CellRow) -> list[tuple[VariantMeasures, VariantMeasures]]:
    """Return what trials of equal number measured, where both were asked the same questions."""
    own, theirs = measures_of(cell), measures_of(reference)
    both = [(own[trial], theirs[trial]) for trial in sorted(own.keys() & theirs.keys())]
    return [(a, b) for a, b in both if a.scores is not None and b.scores is not None and _digest(a) == _digest(b)]


def _digest(one: VariantMeasures) -> str:
    return one.scores.digest if one.scores is not None else ""


def _losses(pairs: Sequence[tuple[Any, Any]], name: str) -> tuple[Points, int] | None:
    """Return the points that each question lost on average, and over how many trials."""
    losses = [
        100 * (np.asarray(getattr(b.scores, name), float) - np.asarray(getattr(a.scores, name), float))
        for a, b in pairs
    ]
    return (np.mean(losses, axis=0), len(losses)) if losses else None


def _over_questions(by_question: Points, num_trials: int) -> Summary:
    if len(by_question) < LEAST_QUESTIONS:
        return Summary(float(by_question.mean()), None, None, num_trials)
    # RandomState, whose stream no version of numpy changes: tables must come out the same.
    draws = np.random.RandomState(0).randint(0, len(by_question), (RESAMPLES, len(by_question)))
    low, high = np.percentile(by_question[draws].mean(axis=1), (2.5, 97.5)).tolist()
    return Summary(float(by_question.mean()), low, high, num_trials)
