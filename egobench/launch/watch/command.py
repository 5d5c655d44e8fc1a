"""The commands that look at a sweep: arguments in, text out, exit code back. The CLI adds only the option parsing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from egobench.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_TRIALS_FAILED, InvalidInput, Mistake, nearest
from egobench.launch.cancel import cancel_sweep
from egobench.launch.queue.poll import ask
from egobench.launch.watch.logs import LogReader, allocation_logs, describe, follow_files, follow_trial
from egobench.launch.watch.reader import SweepReader, read_sweep
from egobench.launch.watch.show import attempt_documents, print_cell, trial_lines
from egobench.launch.watch.state import SweepState, TrialState
from egobench.launch.watch.tables import (
    ledger_line,
    make_console,
    print_json,
    print_status,
    status_document,
    trial_document,
)
from egobench.launch.watch.watch import watch as watch_sweep
from egobench.plan.expand import to_cell
from egobench.records.allocation import AllocationPaths, list_allocations
from egobench.records.outcome import FAILED
from egobench.records.store import SweepPaths
from egobench.records.sweep import PlannedCell, find_sweep

RUNS = Path("runs")


def status_command(
    sweep: str | None = None,
    *,
    runs: Path = RUNS,
    watch: bool = False,
    everything: bool = False,
    as_json: bool = False,
) -> int:
    """Print where a sweep stands: ledger, jobs, GPU-hours, cells, what runs, the time left.

    Asks Slurm, if nobody has within the site's `poll_every_s`; `everything`: also the cells that a long table folds.
    """
    reader = SweepReader(find_sweep(sweep, runs), ask)
    if as_json:
        print_json(status_document(reader.read()))
        return EXIT_OK
    if not watch:
        print_status(reader.read(), make_console(), everything)
        return EXIT_OK
    try:
        watch_sweep(reader, make_console())
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


def show_command(cell: str, *, sweep: str | None = None, runs: Path = RUNS, as_json: bool = False) -> int:
    """Print a cell with all its axes, its trials, their outcomes and measures."""
    state = read_sweep(find_sweep(sweep, runs))
    planned = find_cell(state, cell)
    resolved, trials = to_cell(state.sweep, planned), state.of_cell(planned.cell_id)
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "cell": resolved.model_dump(mode="json"),
                "outcome": state.cell_outcome(planned),
                "because": planned.because,
                "trials": [_full_document(trial) for trial in trials],
            }
        )
        return EXIT_OK
    print_cell(planned, resolved, trials, make_console())
    return EXIT_OK


def _full_document(trial: TrialState) -> dict[str, Any]:
    measures = trial.document.measures if trial.document is not None else None
    return trial_document(trial) | {
        "measures": measures.model_dump(mode="json") if measures is not None else None,
        "earlier_attempts": attempt_documents(trial.paths),
    }


def find_cell(state: SweepState, prefix: str) -> PlannedCell:
    """Return the cell with this id, or the only one whose id begins so, or else holds it.

    Raises:
        InvalidInput: none, or more than one.
    """
    ids = {cell.cell_id: cell for cell in state.sweep.cells}
    found = [ids[prefix]] if prefix in ids else [cell for name, cell in ids.items() if name.startswith(prefix)]
    found = found or [cell for name, cell in ids.items() if prefix in name]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} cells have this in their id" if found else "no cell has this in its id"
    shown = found or list(ids.values())
    allowed = f"cells: {', '.join(cell.cell_id for cell in shown[:12])}" + (", ..." if len(shown) > 12 else "")
    raise InvalidInput([Mistake(prefix, what, allowed, nearest(prefix, ids))])


def logs_command(
    cell: str | None = None,
    *,
    trial: int | None = None,
    following: bool = False,
    allocation: int | None = None,
    sweep: str | None = None,
    runs: Path = RUNS,
) -> int:
    """Print what the ranks of a trial wrote, each line marked with its rank (`!`: stderr); or an allocation's log.

    Default: the trial that runs, else the first that failed, else the first.
    """
    folder = find_sweep(sweep, runs)
    try:
        if allocation is not None:
            return _print_allocation(_find_allocation(SweepPaths(folder), allocation), following)
        if cell is None:
            todo = "name a cell, or an allocation with --allocation"
            raise InvalidInput([Mistake("logs", "neither a cell nor an allocation is named", todo=todo)])
        return _print_trial(SweepReader(folder, ask if following else None), cell, trial, following)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _print_trial(reader: SweepReader, cell: str, number: int | None, following: bool) -> int:
    state = reader.read()
    cell_id = find_cell(state, cell).cell_id
    chosen = _choose(state.of_cell(cell_id), number, cell)
    if following:
        for is_log, line in follow_trial(reader, cell_id, chosen.trial):
            print(line, file=sys.stdout if is_log else sys.stderr, flush=True)
        return EXIT_OK
    for line in trial_lines(chosen):
        print(line, file=sys.stderr)
    lines = list(LogReader(chosen.paths).new_lines(is_last=True))
    for line in lines:
        print(line)
    if not lines and chosen.allocation is not None:
        print(f"{describe(chosen)}; `egobench logs --allocation {chosen.allocation}` shows that one", file=sys.stderr)
    return EXIT_OK


def _find_allocation(paths: SweepPaths, number: int) -> AllocationPaths:
    found = {allocation.number: allocation for allocation in list_allocations(paths)}
    if number not in found:
        allowed = f"allowed: {min(found)} to {max(found)}" if found else "this sweep has none yet"
        raise InvalidInput([Mistake("--allocation", f"there is no allocation {number}", allowed)])
    return found[number]


def _print_allocation(paths: AllocationPaths, following: bool) -> int:
    if not following and not allocation_logs(paths):
        print(f"allocation {paths.number} has said nothing yet; its log will be {paths.log}", file=sys.stderr)
    for line in follow_files(paths, _is_over(paths) if following else None):
        print(line, flush=True)
    return EXIT_OK


def _is_over(paths: AllocationPaths) -> Iterator[bool]:
    reader = SweepReader(paths.sweep.folder, ask)
    while True:
        yield paths.number not in {found.paths.number for found in reader.read().allocations}


def _choose(trials: list[TrialState], number: int | None, cell: str) -> TrialState:
    if not trials:
        raise InvalidInput([Mistake(cell, "the plan dropped this cell; it has no trials", todo="see `egobench show`")])
    if number is not None:
        if not 0 <= number < len(trials):
            raise InvalidInput([Mistake("--trial", f"there is no trial {number}", f"allowed: 0 to {len(trials) - 1}")])
        return trials[number]
    running = (trial for trial in trials if trial.outcome == "running")
    failed = (trial for trial in trials if trial.outcome in FAILED)
    return next(running, None) or next(failed, None) or trials[0]


def cancel_command(
    sweep: str | None = None, *, cell: str | None = None, runs: Path = RUNS, as_json: bool = False
) -> int:
    """End what runs; what has not begun stays pending, and `egobench sweep` resumes it."""
    folder = find_sweep(sweep, runs)
    state = read_sweep(folder)
    cell_id = find_cell(state, cell).cell_id if cell is not None else None
    said = cancel_sweep(state.paths, cell_id)
    after = read_sweep(folder)
    if as_json:
        print_json({"schema_version": 1, "sweep": state.sweep.name, "said": said, "ledger": after.ledger})
    else:
        print(f"{state.sweep.name}: {said}; {ledger_line(after.ledger)}")
    return EXIT_OK if not after.allocations or cell_id is not None else EXIT_TRIALS_FAILED
