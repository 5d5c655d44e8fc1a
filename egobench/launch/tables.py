"""What the commands of this room print: text for people, one JSON document for programs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from egobench.launch.progress import describe_running
from egobench.launch.state import SweepState, TrialState
from egobench.records.outcome import NOT_RUN
from egobench.records.sweep import PlannedCell, count_outcomes
from egobench.records.trial import Cell
from egobench.units import format_bytes, format_seconds, significant

STYLES = {"ok": "green", "running": "cyan", "pending": "dim", "incompatible": "dim", "predicted_oom": "dim"}


def ledger_line(ledger: dict[str, int]) -> str:
    """Return `6 planned: 5 ok, 1 oom`."""
    counts = [f"{count} {name}" for name, count in ledger.items() if count and name != "planned"]
    return f"{ledger['planned']} planned" + (f": {', '.join(counts)}" if counts else "")


def trial_document(trial: TrialState) -> dict[str, Any]:
    """Return what `--json` says about a trial."""
    document: dict[str, Any] = {
        "cell_id": trial.cell.cell_id,
        "trial": trial.trial,
        "outcome": trial.outcome,
        "because": trial.because,
        "folder": str(trial.paths.folder),
    }
    if trial.outcome == "running":
        document |= {
            "since": trial.since,
            "num_steps": trial.num_steps,
            "ranks": [{"phase": p.phase, "step": p.step, "at": p.at} for p in trial.pulses],
        }
    if trial.document is not None:
        document["attempt"] = trial.document.attempt
        document["failure"] = trial.document.failure and trial.document.failure.model_dump(mode="json")
    return document


def status_document(state: SweepState) -> dict[str, Any]:
    """Return the JSON document of `status` and of `sweep`."""
    return {
        "schema_version": 1,
        "sweep": state.sweep.name,
        "folder": str(state.paths.folder),
        "allocation": state.allocation.number if state.allocation else None,
        "ledger": state.ledger,
        "cells": state.cell_ledger,
        "eta_s": state.eta_s,
        "not_in_plan": list(state.not_in_plan),
        "dropped": [
            {"cell_id": cell.cell_id, "outcome": cell.outcome, "because": cell.because}
            for cell in state.sweep.cells
            if cell.outcome in NOT_RUN
        ],
        "trials": [trial_document(trial) for trial in state.trials],
    }


def print_status(state: SweepState, console: Console) -> None:
    """Print ledger, cells and what runs now."""
    console.print(Text(f"{state.sweep.name}: trials: {ledger_line(state.ledger)}"))
    console.print(Text(f"{' ' * len(state.sweep.name)}  cells:  {ledger_line(state.cell_ledger)}"))
    console.print(cell_table(state))
    for trial in state.trials:
        if trial.outcome == "running":
            console.print(Text(f"running: {describe_running(trial, time.time())}"))
    if state.allocation is None and state.ledger["pending"]:
        console.print(Text(f"nothing runs now; `egobench sweep {state.sweep.matrix}` does the rest"))
    elif state.eta_s:
        console.print(Text(f"about {format_seconds(state.eta_s)} left"))
    if state.not_in_plan:
        console.print(Text(f"not in the plan (kept): {', '.join(state.not_in_plan)}"))


def cell_table(state: SweepState) -> Table:
    """Return one row per cell that runs, with what distinguishes it."""
    table = Table(box=None, pad_edge=False)
    for name in ("cell", *state.sweep.varied, "trials", "step time", "tokens/s"):
        # A cell's id must stay whole: it is what `show` and `logs` take.
        table.add_column(name, overflow="fold", no_wrap=name == "cell")
    for cell in state.sweep.cells:
        if cell.outcome not in NOT_RUN:
            axes = [str(cell.axes.get(name, "")) for name in state.sweep.varied]
            table.add_row(cell.cell_id, *axes, _outcomes(state.of_cell(cell.cell_id)), *_means(state, cell))
    return table


def _outcomes(trials: list[TrialState]) -> Text:
    ledger = count_outcomes(trial.outcome for trial in trials)
    text = Text()
    for name, count in ledger.items():
        if count and name != "planned":
            text.append(("  " if text else "") + f"{count} {name}", style=STYLES.get(name, "red"))
    return text


def _means(state: SweepState, cell: PlannedCell) -> tuple[str, str]:
    measures = [
        trial.document.measures
        for trial in state.of_cell(cell.cell_id)
        if trial.document is not None and trial.document.outcome == "ok" and trial.document.measures is not None
    ]
    if not measures:
        return "", ""
    step_s = sum(found.step_time_s for found in measures) / len(measures)
    rate = sum(found.tokens_per_s for found in measures) / len(measures)
    return format_seconds(step_s), significant(rate)


def print_cell(cell: PlannedCell, resolved: Cell, trials: list[TrialState], console: Console) -> None:
    """Print a resolved cell and its trials."""
    console.print(Text(cell.cell_id, style="bold"))
    for name, value in resolved.axes.items():
        console.print(Text(f"  {name}: {value}"))
    if resolved.drill is not None:
        console.print(Text(f"  drill: {resolved.drill.kind} on rank {resolved.drill.rank}, step {resolved.drill.step}"))
    if cell.because:
        console.print(Text(f"{cell.outcome}: {cell.because}"))
    for trial in trials:
        for line in trial_lines(trial):
            console.print(Text(line))


def trial_lines(trial: TrialState) -> Iterable[str]:
    """Yield what is known of a trial."""
    if trial.outcome == "running":
        yield f"trial {trial.trial}: running: {describe_running(trial, time.time())}"
        return
    yield f"trial {trial.trial}: {trial.outcome}" + (f": {trial.because}" if trial.because else "")
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
