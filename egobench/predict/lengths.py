"""From the lengths of samples to micro-batches: the longest, the usual one, and the least that the longest can be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from egobench.predict.setting import Batch
from egobench.spec.workload import Lengths

LEAST_TEXT: Final = 8
"""Tokens around an image at least: the turn's marks, one of the question, one of the answer."""
BUCKET: Final = 8
"""Widths of bucketed rows are multiples of it (egobench/data/batches.py)."""
P90_SIGMAS: Final = 1.2816
"""Of a normal distribution."""


@dataclass(frozen=True)
class Samples:
    """The training samples of a workload, as far as they are known: one image each."""

    image_tokens: int
    """Of a sample."""
    max_length: int
    answer_tokens: int
    """Usual length of an answer where nobody measured it."""
    lengths: Lengths | None = None
    """None: nobody measured them."""

    @property
    def assumed(self) -> str:
        """Say what is taken for granted; empty: nothing about lengths."""
        if self.lengths is not None:
            return ""
        return f"every sample is {self.max_length} tokens long (max_length): the workload states no `lengths:`"

    def longest(self, num_rows: int, padding: str) -> Batch:
        """Return the largest micro-batch of an epoch."""
        if self.lengths is None:
            return self._alike(num_rows, padding, self.max_length, self.max_length - self.image_tokens)
        length = self._cut(self.lengths.longest)
        if padding != "packed":
            return self._rows(num_rows, self._width(length, padding), length, self._supervised)
        # Packed micro-batches hold about equal totals, so that only one sample need be the longest.
        total = length + (num_rows - 1) * self._cut(self.lengths.p90 or self.lengths.mean)
        scores = length**2 + (num_rows - 1) * self._cut(self.lengths.p90 or self.lengths.mean) ** 2
        return self._packed(num_rows, total, scores)

    def least(self, num_rows: int, padding: str) -> Batch:
        """Return the smallest that the largest micro-batch can be: what is certain about it."""
        if padding == "max":
            return self._rows(num_rows, self.max_length, self.max_length, 1)
        length = self._cut(self.image_tokens + LEAST_TEXT) if self.lengths is None else self._cut(self.lengths.longest)
        if self.lengths is None or padding != "packed":
            return self._alike(num_rows, padding, length, 1)
        mean = min(length, self._cut(self.lengths.mean))
        return self._packed(num_rows, length + (num_rows - 1) * mean, length**2 + (num_rows - 1) * mean**2)

    def usual(self, num_rows: int, padding: str) -> Batch:
        """Return the mean micro-batch."""
        if self.lengths is None:
            return self._alike(num_rows, padding, self.max_length, self._supervised)
        mean = self._cut(self.lengths.mean)
        if padding == "packed":
            return self._packed(num_rows, num_rows * mean, num_rows * (mean**2 + self._sigma**2))
        width = mean if padding == "bucketed" else self._longest_of(num_rows)
        return self._rows(num_rows, self._width(width, padding), mean, self._supervised)

    @property
    def _supervised(self) -> float:
        measured = self.lengths.supervised if self.lengths is not None else None
        return min(measured or self.answer_tokens, max(1, self.max_length - self.image_tokens))

    @property
    def _sigma(self) -> float:
        assert self.lengths is not None
        return max(0.0, (self.lengths.p90 or self.lengths.mean) - self.lengths.mean) / P90_SIGMAS

    def _cut(self, length: float) -> float:
        return min(length, self.max_length)

    def _longest_of(self, num_rows: int) -> float:
        """Return the mean length of the longest of so many samples, by the quantile n / (n + 1) of what is known."""
        assert self.lengths is not None
        mean, p90, longest = self.lengths.mean, self.lengths.p90 or self.lengths.mean, self.lengths.longest
        place = num_rows / (num_rows + 1)
        if place <= 0.9:
            return self._cut(mean + (p90 - mean) * (place - 0.5) / 0.4)
        return self._cut(p90 + (longest - p90) * (place - 0.9) / 0.1)

    def _width(self, length: float, padding: str) -> float:
        if padding == "max":
            return self.max_length
        return min(math.ceil(length / BUCKET) * BUCKET, self.max_length) if padding == "bucketed" else length

    def _alike(self, num_rows: int, padding: str, length: float, supervised: float) -> Batch:
        if padding == "packed":
            return self._packed(num_rows, num_rows * length, num_rows * length**2, supervised)
        return self._rows(num_rows, self._width(length, padding), length, supervised)

    def _rows(self, num_rows: int, width: float, real: float, supervised: float) -> Batch:
        return Batch(
            num_rows=num_rows,
            width=width,
            num_images=num_rows,
            num_supervised=num_rows * supervised,
            num_real=num_rows * real,
            num_scores=num_rows * width**2,
        )

    def _packed(self, num_rows: int, total: float, scores: float, supervised: float | None = None) -> Batch:
        return Batch(
            num_rows=1,
            width=total,
            num_images=num_rows,
            num_supervised=num_rows * (self._supervised if supervised is None else supervised),
            num_real=total,
            num_scores=scores,
        )
