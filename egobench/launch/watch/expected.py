"""How long trials take: as finished ones of their cell did, else as predicted, else as all finished ones did."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from egobench.records.outcome import Outcome
from egobench.records.sweep import PlannedCell


def durations_s(outcomes: Iterable[Outcome | None]) -> dict[str, list[float]]:
    """Return how long the trials of each cell took that ended ok."""
    found: dict[str, list[float]] = {}
    for one in outcomes:
        if one is not None and one.outcome == "ok":
            found.setdefault(one.cell_id, []).append(one.ended_at - one.started_at)
    return found


@dataclass(frozen=True)
class Expected:
    """What is known of how long the trials of each cell take."""

    observed_s: Mapping[str, float]
    """Mean of the finished trials of a cell."""
    predicted_s: Mapping[str, float]
    """As the plan foretold it, corrected by how finished cells compared with their own prediction."""
    overall_s: float | None = None
    """Mean of all finished trials; None: there are none."""

    @classmethod
    def of(cls, cells: Iterable[PlannedCell], outcomes: Iterable[Outcome | None]) -> Expected:
        """Learn from the trials that ended ok."""
        durations = durations_s(outcomes)
        observed = {cell_id: statistics.fmean(took) for cell_id, took in durations.items()}
        predicted = {
            cell.cell_id: cell.predicted.predicted_trial_s
            for cell in cells
            if cell.predicted is not None and cell.predicted.predicted_trial_s is not None
        }
        both = observed.keys() & predicted.keys()
        correction = sum(observed[name] for name in both) / sum(predicted[name] for name in both) if both else 1.0
        overall = statistics.fmean(took for cell in durations.values() for took in cell) if durations else None
        return cls(observed, {name: correction * seconds for name, seconds in predicted.items()}, overall)

    def of_cell_s(self, cell_id: str) -> float | None:
        """Return how long a trial of a cell takes, None where neither a finished one nor a prediction says so."""
        return self.observed_s.get(cell_id, self.predicted_s.get(cell_id))
