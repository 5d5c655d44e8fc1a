"""What `status` prints: text for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from egobench.launch.watch.jobs import eta_line, hours_document, hours_lines, job_documents, job_lines, queue_document
from egobench.launch.watch.progress import describe_running
from egobench.launch.watch.state import SweepState, TrialState
from egobench.records.outcome import NOT_RUN
from egobench.records.sweep import PlannedCell, count_outcomes
from egobench.units import format_seconds, significant

STYLES: Final = {"ok": "green", "running": "cyan", "pending": "dim", "incompatible": "dim", "predicted_oom": "dim"}
MOST_ROWS: Final = 60
"""A table with more rows is folded: cells of which there is nothing to tell are counted only."""
MOST_RUNNING: Final = 20


def make_console() -> Console:
    """Return stdout as rich takes it."""
    # Off a terminal rich would cut lines at 80 columns, and ids with them.
    return Console() if sys.stdout.isatty() else Console(width=240)


def print_json(document: dict[str, Any]) -> None:
    """Print the one document of `--json`."""
    print(json.dumps(document, indent=1))


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
        "attempt": trial.attempt,
        "folder": str(trial.paths.folder),
    }
    if trial.allocation is not None:
        document["allocation"] = trial.allocation
    if trial.outcome == "running":
        document |= {
            "since": trial.since,
            "num_steps": trial.num_steps,
            "ranks": [{"phase": p.phase, "step": p.step, "at": p.at} for p in trial.pulses],
        }
    if trial.document is not None:
        document["failure"] = trial.document.failure and trial.document.failure.model_dump(mode="json")
    return document


def status_document(state: SweepState) -> dict[str, Any]:
    """Return the JSON document of `status` and of `sweep`."""
    return {
        "schema_version": 1,
        "sweep": state.sweep.name,
        "folder": str(state.paths.folder),
        "ledger": state.ledger,
        "cells": state.cell_ledger,
        "eta_s": state.eta_s,
        "gpu_hours": hours_document(state),
        "num_repeats": state.num_repeats,
        "queue": queue_document(state),
        "allocations": job_documents(state),
        "not_in_plan": list(state.not_in_plan),
        "dropped": [
            {"cell_id": cell.cell_id, "outcome": cell.outcome, "because": cell.because}
            for cell in state.sweep.cells
            if cell.outcome in NOT_RUN
        ],
        "trials": [trial_document(trial) for trial in state.trials],
    }


def print_status(state: SweepState, console: Console, everything: bool = False) -> None:
    """Print ledger, jobs, cells and what runs now."""
    for line in head_lines(state):
        console.print(Text(line))
    rows = shown_cells(state, None if everything else MOST_ROWS)
    if rows:
        console.print(cell_table(state, rows))
    for line in (*folded_lines(state, rows), *running_lines(state), *tail_lines(state)):
        console.print(Text(line))


def head_lines(state: SweepState) -> Iterable[str]:
    """Yield the ledger, the jobs and the hours."""
    yield f"{state.sweep.name}: trials: {ledger_line(state.ledger)}"
    yield f"{' ' * len(state.sweep.name)}  cells:  {ledger_line(state.cell_ledger)}"
    yield from job_lines(state)
    yield from hours_lines(state)


def running_lines(state: SweepState, most: int = MOST_RUNNING) -> Iterable[str]:
    """Yield where each running trial is."""
    running = state.running
    for trial in running[:most]:
        yield f"running: {describe_running(trial, state.at)}"
    if len(running) > most:
        yield f"and {len(running) - most} more run"


def tail_lines(state: SweepState) -> Iterable[str]:
    """Yield what comes next."""
    if not state.allocations and state.ledger["pending"]:
        yield f"nothing runs now; `egobench sweep {state.sweep.matrix}` does the rest"
    elif (line := eta_line(state)) is not None:
        yield line
    if state.not_in_plan:
        yield f"not in the plan (kept): {', '.join(state.not_in_plan)}"


def shown_cells(state: SweepState, most: int | None) -> list[PlannedCell]:
    """Return the cells that get a row: all, or where they are more than `most`, those that run or have failed."""
    cells = [cell for cell in state.sweep.cells if cell.outcome not in NOT_RUN]
    if most is None or len(cells) <= most:
        return cells
    outcomes = [(cell, state.cell_outcome(cell)) for cell in cells]
    telling = [(cell, outcome) for cell, outcome in outcomes if outcome not in ("ok", "pending")]
    telling.sort(key=lambda found: found[1] != "running")
    chosen = {cell.cell_id for cell, _ in telling[:most]}
    return [cell for cell in cells if cell.cell_id in chosen]


def folded_lines(state: SweepState, rows: Sequence[PlannedCell]) -> Iterable[str]:
    """Yield the count of the cells without a row."""
    shown = {cell.cell_id for cell in rows}
    rest = [cell for cell in state.sweep.cells if cell.outcome not in NOT_RUN and cell.cell_id not in shown]
    if rest:
        counts = Counter(state.cell_outcome(cell) for cell in rest)
        listed = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
        yield f"and {len(rest):,} cells: {listed} (`--all` lists them)"


def cell_table(state: SweepState, cells: Sequence[PlannedCell]) -> Table:
    """Return one row per cell, with what distinguishes it."""
    table = Table(box=None, pad_edge=False)
    for name in ("cell", *state.sweep.varied, "trials", "step time", "tokens/s"):
        # A cell's id must stay whole: it is what `show` and `logs` take.
        table.add_column(name, overflow="fold", no_wrap=name == "cell")
    for cell in cells:
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
