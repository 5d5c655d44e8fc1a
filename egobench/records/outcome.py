"""How a trial ended: the closed set of outcomes, and the document that says why."""

from __future__ import annotations

from typing import Final, Literal, get_args

from pydantic import Field

from egobench.records.measures import Measures
from egobench.records.variant import VariantMeasures
from egobench.spec.strict import Record

OutcomeName = Literal[
    "ok", "oom", "host_oom", "timeout", "hang", "preempted", "node_fail", "crash", "diverged",
    "parent_failed", "incompatible", "predicted_oom", "cancelled", "pending", "running",
]  # fmt: skip
OUTCOMES: Final[tuple[OutcomeName, ...]] = get_args(OutcomeName)
UNFINISHED: Final[frozenset[OutcomeName]] = frozenset({"pending", "running"})
NOT_RUN: Final[frozenset[OutcomeName]] = frozenset({"incompatible", "predicted_oom"})
"""Decided by the plan; such a cell has no trials."""
FAILED: Final[frozenset[OutcomeName]] = frozenset(OUTCOMES) - UNFINISHED - NOT_RUN - {"ok"}

Phase = Literal["launch", "load", "data", "forward", "backward", "communication", "optimizer", "eval", "save", "done"]
PHASES: Final[tuple[Phase, ...]] = get_args(Phase)


class Failure(Record):
    """What the first failing rank said, or what was seen of it from outside."""

    rank: int
    """First failing rank by time (for a hang: the rank furthest behind)."""
    phase: Phase
    step: int
    """Optimizer update, counted from 0; -1 before the first."""
    message: str
    """The exception's own text, or the signal that ended the rank."""
    traceback: str = ""
    requested_bytes: int | None = None
    """For out-of-memory: what the allocation asked for."""
    free_bytes: int | None = None
    """For out-of-memory: what was free at that moment."""
    log_tail: str = ""
    """Last lines of the rank's stderr."""


class Outcome(Record):
    """`outcome.json`: written once, atomically, when a trial is over."""

    schema_version: Literal[1] = 1
    outcome: OutcomeName
    because: str = ""
    """One line for people; empty for ok."""
    cell_id: str
    trial: int
    attempt: int = Field(default=1, ge=1)
    """1 for the first launch of the trial."""
    started_at: float
    """Unix time, s."""
    ended_at: float
    launch_s: float | None = None
    """From the launch of the ranks to the start of the first step."""
    interrupted: bool = False
    """The allocation came to its end under the trial, which is not to blame and may be launched again."""
    failure: Failure | None = None
    measures: Measures | None = None
    """What was measured; also of a failed trial, as far as it came, but then never compared."""
    variant: VariantMeasures | None = None
    """Of a variant's trial."""
