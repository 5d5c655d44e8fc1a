"""What `show` prints of a cell: its axes, its trials, each attempt with how it ended."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from egobench.launch.watch.progress import describe_running
from egobench.launch.watch.state import TrialState
from egobench.records.outcome import Outcome
from egobench.records.store import TrialPaths, read_document
from egobench.records.sweep import PlannedCell
from egobench.records.trial import Cell
from egobench.units import format_bytes, format_seconds, significant


def print_cell(cell: PlannedCell, resolved: Cell, trials: list[TrialState], console: Console) -> None:
    """Print a resolved cell and its trials."""
    console.print(Text(cell.cell_id, style="bold"))
    for name, value in resolved.axes.items():
        console.print(Text(f"  {name}: {value}"))
    if resolved.drill is not None:
        console.print(Text(f"  drill: {resolved.drill.kind} on rank {resolved.drill.rank}, step {resolved.drill.step}"))
    if cell.parent is not None:
        console.print(Text(f"  depends on: {cell.parent} ({'ok' if cell.needs == 'ok' else 'over'})"))
    for line in predicted_lines(cell):
        console.print(Text(line))
    if cell.because:
        console.print(Text(f"{cell.outcome}: {cell.because}"))
    for trial in trials:
        for line in (*trial_lines(trial), *attempt_lines(trial.paths)):
            console.print(Text(line))


def predicted_lines(cell: PlannedCell) -> Iterable[str]:
    """Yield what the plan foretold."""
    found = cell.predicted
    if found is None:
        return
    if found.verdict is None or found.predicted_low_bytes is None or found.predicted_high_bytes is None:
        yield f"  not predicted: {found.because}"
        return
    used = f"{format_bytes(found.predicted_low_bytes)} to {format_bytes(found.predicted_high_bytes)} of the GPU"
    step = found.predicted_step_time_s
    time_text = f", step time {format_seconds(step)}" if step is not None else ""
    yield f"  predicted: {found.verdict}{' (canary)' if cell.is_canary else ''}, {used}{time_text}"


def trial_lines(trial: TrialState) -> Iterable[str]:
    """Yield what is known of a trial."""
    if trial.outcome == "running":
        yield f"trial {trial.trial}: running: {describe_running(trial, time.time())}"
        return
    waits = trial.allocation is not None and trial.outcome == "pending"
    because = trial.because or (f"waits in allocation {trial.allocation}" if waits else "")
    yield f"trial {trial.trial}: {trial.outcome}" + (f": {because}" if because else "")
    document = trial.document
    if document is None:
        return
    if failure := document.failure:
        if failure.requested_bytes is not None:
            free = format_bytes(failure.free_bytes) if failure.free_bytes is not None else "unknown"
            yield f"  asked for {format_bytes(failure.requested_bytes)}, free: {free}"
        yield f"  log: {trial.paths.rank_log(failure.rank)}"
    if measures := document.measures:
        peak = measures.peak_memory_bytes
        memory = f", peak memory {format_bytes(peak)}" if peak is not None else ""
        yield (
            f"  {measures.num_steps} steps, step time {format_seconds(measures.step_time_s)}, "
            f"{significant(measures.tokens_per_s)} tokens/s{memory}"
        )
        if (after := measures.after) is not None:
            yield f"  EM {after.em:.1f}, F1 {after.f1:.1f} of {after.num_questions} questions"


def attempt_lines(paths: TrialPaths) -> Iterable[str]:
    """Yield how each earlier attempt ended."""
    for number, document in earlier_attempts(paths):
        if document is None:
            yield f"  attempt {number}: nobody wrote how it ended; see {paths.attempts / str(number)}"
            continue
        because = f": {document.because}" if document.because else ""
        took = format_seconds(max(0.0, document.ended_at - document.started_at))
        yield f"  attempt {number}: {document.outcome} after {took}{because}"


def attempt_documents(paths: TrialPaths) -> list[dict[str, Any]]:
    """Return the earlier attempts for `--json`."""
    return [
        {
            "attempt": number,
            "outcome": document.outcome if document is not None else None,
            "because": document.because if document is not None else "",
            "started_at": document.started_at if document is not None else None,
            "ended_at": document.ended_at if document is not None else None,
            "folder": str(paths.attempts / str(number)),
        }
        for number, document in earlier_attempts(paths)
    ]


def earlier_attempts(paths: TrialPaths) -> list[tuple[int, Outcome | None]]:
    """Return the attempts that were moved aside, oldest first."""
    if not paths.attempts.is_dir():
        return []
    numbers = sorted(int(entry.name) for entry in paths.attempts.iterdir() if entry.name.isdigit())
    return [(number, read_document(paths.attempts / str(number) / "outcome.json", Outcome)) for number in numbers]
