"""The learning rate of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to the peak, then constant, or down to zero at the planned end."""

    shape: str
    """constant, cosine or linear."""
    peak: float
    num_steps: int
    num_warmup_steps: int

    def at(self, step: int) -> float:
        """Return the learning rate of an update, counted from 0."""
        if step < self.num_warmup_steps:
            return self.peak * (step + 1) / self.num_warmup_steps
        if self.shape == "constant":
            return self.peak
        done = (step - self.num_warmup_steps) / max(1, self.num_steps - self.num_warmup_steps)
        done = min(1.0, done)
        return self.peak * (0.5 * (1 + math.cos(math.pi * done)) if self.shape == "cosine" else 1 - done)
