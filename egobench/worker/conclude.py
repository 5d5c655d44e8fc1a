"""Turns what the ranks of a trial left into `steps.jsonl` and, last of all, `outcome.json`."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Final

from egobench.errors import EXIT_ENVIRONMENT, EnvironmentProblem
from egobench.probes.pulse import read_pulse
from egobench.records.measures import MergedStep, StepRecord
from egobench.records.outcome import Failure, Outcome, OutcomeName
from egobench.records.rank import RankReport
from egobench.records.store import TrialPaths, read_document, read_lines, write_document, write_text
from egobench.records.summary import merge_steps, summarise
from egobench.records.trial import Trial
from egobench.worker.agent import RankExits
from egobench.worker.blame import Evidence, find_outcome
from egobench.worker.watch import Watch

FULL_BYTES: Final = 64 * 1024
"""With less free than this, a failed trial may have failed for want of space."""
TAIL_LINES: Final = 80
TAIL_BYTES: Final = 16 * 1024


def conclude(
    trial: Trial, paths: TrialPaths, attempt: int, started_at: float, watch: Watch, exits: RankExits, oom_kills: int
) -> Outcome:
    """Write the trial's outcome.

    Raises:
        EnvironmentProblem: the machine failed, not the trial; then there is no outcome.
    """
    ended_at = time.time()
    ranks = range(trial.num_ranks)
    reports = [r for rank in ranks if (r := read_document(paths.rank_report(rank), RankReport)) is not None]
    outcome, failure = find_outcome(_evidence(trial, paths, watch, exits, reports, oom_kills))
    if outcome != "ok":
        _refuse_to_blame(paths, exits)
    per_rank = [read_lines(paths.rank_steps(rank), StepRecord) for rank in ranks]
    merged = merge_steps(per_rank)
    write_text(paths.steps, "".join(_line(step) for step in merged))
    document = Outcome(
        outcome=outcome,
        because=_because(outcome, failure),
        cell_id=trial.cell.cell_id,
        trial=trial.trial,
        attempt=attempt,
        started_at=started_at,
        ended_at=ended_at,
        launch_s=_launch_s(started_at, reports, per_rank),
        failure=failure.model_copy(update={"log_tail": log_tail(paths.rank_log(failure.rank))}) if failure else None,
        measures=summarise(merged, reports),
    )
    write_document(paths.outcome, document)
    return document


def _evidence(
    trial: Trial, paths: TrialPaths, watch: Watch, exits: RankExits, reports: list[RankReport], oom_kills: int
) -> Evidence:
    pulses = {rank: read_pulse(paths.rank_pulse(rank)) for rank in range(trial.num_ranks)}
    return Evidence(
        num_ranks=trial.num_ranks,
        reports=reports,
        deaths=watch.deaths,
        exit_codes=exits.exit_codes,
        pulses={rank: pulse for rank, pulse in pulses.items() if pulse is not None},
        verdict=watch.verdict,
        ended_at=watch.ended_at,
        was_oom_killed=oom_kills > 0,
    )


def _refuse_to_blame(paths: TrialPaths, exits: RankExits) -> None:
    """Raise if the machine is to blame.

    Raises:
        EnvironmentProblem: a rank said so by its exit code, or the disk is full.
    """
    for rank, code in exits.exit_codes.items():
        if code == EXIT_ENVIRONMENT:
            last = log_tail(paths.rank_log(rank)).strip().rpartition("\n")[2]
            what = last.partition("EnvironmentProblem: ")[2] or last or "the machine failed"
            raise EnvironmentProblem(f"rank {rank}: {what}")
    if shutil.disk_usage(paths.folder).free < FULL_BYTES:
        raise EnvironmentProblem(
            f"{paths.folder}: cannot write: the disk is full; free some space, then run the same command again"
        )


def _because(outcome: OutcomeName, failure: Failure | None) -> str:
    if failure is None:
        return ""
    where = f"rank {failure.rank}, {failure.phase}" + (f", step {failure.step}" if failure.step >= 0 else "")
    message = failure.message.strip()
    return f"{where}: {message.splitlines()[0] if message else outcome}"


def _launch_s(started_at: float, reports: list[RankReport], per_rank: list[list[StepRecord]]) -> float | None:
    firsts = [report.summary.first_step_at for report in reports if report.summary is not None]
    firsts = firsts or [lines[0].started_at for lines in per_rank if lines]
    return max(firsts) - started_at if firsts else None


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
