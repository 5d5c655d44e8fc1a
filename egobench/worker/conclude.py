"""Turns what the ranks of a trial left into `steps.jsonl` and, last of all, `outcome.json`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from egobench.errors import EXIT_ENVIRONMENT, EnvironmentProblem
from egobench.records.measures import MergedStep, StepRecord
from egobench.records.outcome import Failure, Outcome, OutcomeName
from egobench.records.provenance import Provenance
from egobench.records.rank import RankReport
from egobench.records.store import (
    TrialPaths,
    create_document,
    is_full,
    read_document,
    read_lines,
    write_document,
    write_text,
)
from egobench.records.summary import merge_steps, summarise
from egobench.records.trial import Trial
from egobench.worker.blame import Evidence, find_outcome

TAIL_LINES: Final = 80
TAIL_BYTES: Final = 16 * 1024


@dataclass(frozen=True)
class Remains:
    """What a launch of a trial left, over all nodes, once no process of it is left anywhere."""

    attempt: int
    started_at: float
    """Unix time, s."""
    evidence: Evidence
    log_tails: Mapping[int, str] = field(default_factory=dict)
    """Last lines of ranks whose logs may not be seen here yet."""
    problem: str = ""
    """The machine failed, not the trial."""
    ahead_s: Mapping[int, float] = field(default_factory=dict)
    """How far the clocks of ranks on other nodes are ahead of ours."""


def conclude(trial: Trial, paths: TrialPaths, remains: Remains, fence: Callable[[], None]) -> Outcome:
    """Write the trial's outcome; where there is one already, that one stands.

    Args:
        trial: What ran.
        paths: Where.
        remains: What it left.
        fence: Called right before the outcome is written; raises where we have been superseded.

    Raises:
        EnvironmentProblem: the machine failed, not the trial; then there is no outcome.
    """
    ended_at = time.time()
    ranks = range(trial.num_ranks)
    evidence, reports = remains.evidence, remains.evidence.reports
    outcome, failure = find_outcome(evidence)
    if outcome != "ok":
        _refuse_to_blame(paths, remains)
    per_rank = [read_lines(paths.rank_steps(rank), StepRecord) for rank in ranks]
    merged = merge_steps(per_rank)
    verdict = evidence.verdict
    fence()
    if (given := read_document(paths.outcome, Outcome)) is not None:
        return given
    write_text(paths.steps, "".join(_line(step) for step in merged))
    _tell_bindings(paths, reports)
    document = Outcome(
        outcome=outcome,
        because=_because(outcome, failure),
        cell_id=trial.cell.cell_id,
        trial=trial.trial,
        attempt=remains.attempt,
        started_at=remains.started_at,
        ended_at=ended_at,
        launch_s=_launch_s(remains, reports, per_rank),
        interrupted=verdict is not None and verdict.interrupted and verdict.outcome == outcome,
        failure=failure.model_copy(update={"log_tail": _tail(paths, remains, failure.rank)}) if failure else None,
        measures=summarise(merged, reports),
        variant=next((one.summary.variant for one in reports if one.summary and one.summary.variant), None),
    )
    fence()
    if create_document(paths.outcome, document):
        return document
    return read_document(paths.outcome, Outcome) or document


def _tell_bindings(paths: TrialPaths, reports: Sequence[RankReport]) -> None:
    """Add to the provenance, which one rank wrote, where each rank was kept."""
    bindings = tuple(report.binding for report in reports if report.binding is not None)
    provenance = read_document(paths.provenance, Provenance) if bindings else None
    if provenance is not None:
        write_document(paths.provenance, provenance.model_copy(update={"binding": bindings}))


def _tail(paths: TrialPaths, remains: Remains, rank: int) -> str:
    return remains.log_tails.get(rank) or log_tail(paths.rank_log(rank))


def _refuse_to_blame(paths: TrialPaths, remains: Remains) -> None:
    """Raise if the machine is to blame.

    Raises:
        EnvironmentProblem: a rank said so by its exit code, a node did, or the disk is full.
    """
    if remains.problem:
        raise EnvironmentProblem(remains.problem)
    for rank, code in remains.evidence.exit_codes.items():
        if code == EXIT_ENVIRONMENT:
            last = _tail(paths, remains, rank).strip().rpartition("\n")[2]
            what = last.partition("EnvironmentProblem: ")[2] or last or "the machine failed"
            raise EnvironmentProblem(f"rank {rank}: {what}")
    if is_full(paths.folder):  # it may have failed for want of space
        raise EnvironmentProblem(
            f"{paths.folder}: cannot write: the disk is full; free some space, then run the same command again"
        )


def _because(outcome: OutcomeName, failure: Failure | None) -> str:
    if failure is None:
        return ""
    where = f"rank {failure.rank}, {failure.phase}" + (f", step {failure.step}" if failure.step >= 0 else "")
    message = failure.message.strip()
    return f"{where}: {message.splitlines()[0] if message else outcome}"


def _launch_s(remains: Remains, reports: Sequence[RankReport], per_rank: list[list[StepRecord]]) -> float | None:
    firsts = [report.summary.first_step_at for report in reports if report.summary is not None]
    ahead_s = remains.ahead_s
    for rank, lines in enumerate(per_rank if not firsts else []):
        began = [line.started_at - ahead_s.get(rank, 0.0) for line in lines]
        # The lines of an attempt that this one went on from are older.
        firsts += [at for at in began if at >= remains.started_at][:1]
    return max(firsts) - remains.started_at if firsts else None


def _line(step: MergedStep) -> str:
    return json.dumps(step.model_dump(mode="json")) + "\n"


def log_tail(path: Path) -> str:
    """Return the last lines of a log, of a file of any size."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-TAIL_LINES:])
