"""What a sweep must show, against its baseline."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from egobench.spec.strict import Strict


class AtLeast(Strict):
    """A ratio to the baseline that must be reached."""

    at_least: float = Field(gt=0)


class AtMost(Strict):
    """A ratio to the baseline that must not be exceeded."""

    at_most: float = Field(gt=0)


class BelowPoints(Strict):
    """A loss of accuracy, in points of 0-100, that must not be reached."""

    below_points: float = Field(gt=0)
    metric: Literal["em", "f1"] = "f1"


class VariantTargets(Strict):
    """What a variant must show against the `as_trained` one of the same cell; a variant reaches all of them or none."""

    size: AtMost | None = None
    """Bytes on disk over the reference's."""
    decode_speed: AtLeast | None = None
    """Decoded tokens/s of the smallest batch over the reference's, which torch runs if it is there."""
    accuracy_drop: BelowPoints | None = None
    """Points lost, paired by question: the whole 95 % interval must lie below."""


class Targets(Strict):
    """Reached by a cell only if all the stated ones hold for it together."""

    throughput: AtLeast | None = None
    """Effective tokens/s over the baseline's."""
    peak_memory: AtMost | None = None
    """Peak memory (largest rank) over the baseline's."""
    accuracy_drop: BelowPoints | None = None
    """Baseline's metric minus the cell's."""
    variants: VariantTargets | None = None
    """Of the variants, against the unchanged model."""
