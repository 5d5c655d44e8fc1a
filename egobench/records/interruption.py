"""The record of an attempt whose allocation ended under it; written by the next start, or by the login side."""

from __future__ import annotations

from egobench.records.allocation import INTERRUPTIONS, Claim, Interruption
from egobench.records.measures import StepRecord
from egobench.records.outcome import Outcome, OutcomeName
from egobench.records.rank import RankReport
from egobench.records.store import TrialPaths, create_document, read_document, read_lines
from egobench.records.summary import merge_steps, summarise


def record_interruption(paths: TrialPaths, claim: Claim, outcome: OutcomeName, because: str) -> bool:
    """Write the outcome of an interrupted attempt; False where there is an outcome already, which then stands."""
    mark = read_document(paths.interrupted, Interruption)
    reports = [r for path in sorted(paths.ranks.glob("*.json")) if (r := read_document(path, RankReport)) is not None]
    merged = merge_steps([read_lines(path, StepRecord) for path in sorted(paths.ranks.glob("*.jsonl"))])
    cell_id, trial = paths.folder.parent.name, int(paths.folder.name)
    document = Outcome(
        outcome=outcome,
        because=because,
        cell_id=cell_id,
        trial=trial,
        attempt=claim.attempt,
        started_at=claim.since,
        ended_at=max(claim.since, mark.at if mark is not None else _last_sign(paths, claim)),
        interrupted=outcome in INTERRUPTIONS,
        measures=summarise(merged, reports),
    )
    return create_document(paths.outcome, document)


def _last_sign(paths: TrialPaths, claim: Claim) -> float:
    """Return when the attempt was last seen alive, by the clocks of its own nodes."""
    lasts = [read_lines(path, StepRecord)[-1:] for path in paths.ranks.glob("*.jsonl")]
    return max([claim.since, *(step.started_at + step.step_time_s for last in lasts for step in last)])
