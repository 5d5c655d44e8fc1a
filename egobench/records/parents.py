"""Trials that hang on another cell's trial of the same number."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

from egobench.records.allocation import Retry, TrialRef
from egobench.records.claim import archive, next_attempt, settle_vanished
from egobench.records.outcome import Outcome
from egobench.records.store import SweepPaths, TrialPaths, create_document, read_document

Readiness = Literal["ready", "wait", "failed"]


def look_at_parent(
    sweep: SweepPaths, ref: TrialRef, retry: Retry, others: Iterable[TrialRef] = ()
) -> tuple[Readiness, Outcome | None]:
    """Return whether the trial may run now, must wait for its parent, or never will; and the parent's outcome.

    Args:
        sweep: Where.
        ref: The trial.
        retry: Which outcomes of the parent are final.
        others: What is to be launched beside it: where the parent is to run once more, only that launch counts.
    """
    if ref.parent is None:
        return "ready", None
    wanted = TrialRef(cell_id=ref.parent, trial=ref.trial)
    wanted = next((it for it in others if (it.cell_id, it.trial) == (ref.parent, ref.trial)), wanted)
    outcome = read_document(sweep.trial(wanted.cell_id, wanted.trial).outcome, Outcome)
    if outcome is None or not retry.is_final(outcome, wanted):
        return "wait", outcome
    if outcome.outcome == "ok" or ref.needs == "end":
        return "ready", outcome
    return "failed", outcome


def give_up(trial: TrialPaths, ref: TrialRef, parent: Outcome) -> Outcome:
    """Write the outcome of a trial whose parent failed; nothing is launched."""
    settle_vanished(trial)
    attempt = max(ref.attempt, next_attempt(trial))
    archive(trial)
    now = time.time()
    why = f": {parent.because}" if parent.because else ""
    document = Outcome(
        outcome="parent_failed",
        because=f"{parent.cell_id} trial {parent.trial}, which it needs, ended as {parent.outcome}{why}",
        cell_id=ref.cell_id,
        trial=ref.trial,
        attempt=attempt,
        started_at=now,
        ended_at=now,
    )
    create_document(trial.outcome, document)
    return read_document(trial.outcome, Outcome) or document
