"""The commands of this room: arguments in, text out, exit code back. The CLI adds only the option parsing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from egobench.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_TRIALS_FAILED, InvalidInput, Mistake, nearest
from egobench.launch.cancel import cancel_sweep
from egobench.launch.logs import LogReader, follow
from egobench.launch.progress import observer_for
from egobench.launch.state import SweepState, TrialState, read_sweep
from egobench.launch.sweep import Todo, Wish, look_up, run_sweep
from egobench.launch.tables import (
    cell_table,
    ledger_line,
    print_cell,
    print_status,
    status_document,
    trial_document,
    trial_lines,
)
from egobench.plan.expand import to_cell
from egobench.records.outcome import FAILED, OutcomeName
from egobench.records.sweep import PlannedCell, find_sweep

RUNS = Path("runs")
WATCH_EVERY_S = 1.0


def sweep_command(
    matrix: Path,
    *,
    runs: Path = RUNS,
    only: str | None = None,
    limit: int | None = None,
    retry: str | None = None,
    fail_fast: bool = False,
    dry_run: bool = False,
    as_json: bool = False,
) -> int:
    """Run what is missing of a matrix; 0: all asked for ok, 3: some failed, 5: the machine did, 130: interrupted.

    Raises:
        EgobenchError: mistakes in the matrix, a busy folder, a problem of the machine.
    """
    wish = Wish(only=only, limit=limit, retry=parse_retry(retry), fail_fast=fail_fast)
    todo = look_up(matrix, runs, wish)
    if dry_run:
        return _dry_run(todo, as_json)
    observer = observer_for(sys.stderr)
    try:
        code = run_sweep(todo, wish, observer)
    finally:
        observer.close()
    state = read_sweep(todo.paths.folder)
    if state.not_in_plan:
        print(f"not in the plan any more (kept): {', '.join(state.not_in_plan)}", file=sys.stderr)
    if as_json:
        _print_json(status_document(state) | {"exit_code": code})
    else:
        print(f"{state.sweep.name}: {ledger_line(state.ledger)}")
        print(f"egobench report {todo.paths.folder}", file=sys.stderr)
    return code


def parse_retry(text: str | None) -> frozenset[OutcomeName]:
    """Read `--retry crash,oom`.

    Raises:
        InvalidInput: a name that is no outcome of a failed trial.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    wrong = [name for name in names if name not in FAILED]
    if wrong:
        allowed = f"allowed: {', '.join(sorted(FAILED))}"
        raise InvalidInput(
            Mistake("--retry", f"'{name}' is no outcome to retry", allowed, nearest(name, FAILED)) for name in wrong
        )
    return frozenset(outcome for outcome in FAILED if outcome in names)


def _dry_run(todo: Todo, as_json: bool) -> int:
    missing = todo.missing()
    if as_json:
        trials = [{"cell_id": ref.cell_id, "trial": ref.trial, "attempt": ref.attempt} for ref in missing]
        _print_json({"schema_version": 1, "sweep": todo.sweep.name, "would_run": trials})
        return EXIT_OK
    for ref in missing:
        print(f"{ref.cell_id} trial {ref.trial}" + (f" (attempt {ref.attempt})" if ref.attempt > 1 else ""))
    print(f"{len(missing)} of {len(todo.asked)} trials would run; nothing was written", file=sys.stderr)
    return EXIT_OK


def status_command(sweep: str | None = None, *, runs: Path = RUNS, watch: bool = False, as_json: bool = False) -> int:
    """Print where a sweep stands: ledger, cells, the running trial's step, the time left."""
    folder = find_sweep(sweep, runs)
    if as_json:
        _print_json(status_document(read_sweep(folder)))
        return EXIT_OK
    if not watch:
        print_status(read_sweep(folder), _console())
        return EXIT_OK
    try:
        _watch(folder)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


def _watch(folder: Path) -> None:
    console = _console()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while (state := read_sweep(folder)).allocation is not None:
                live.update(cell_table(state), refresh=True)
                time.sleep(WATCH_EVERY_S)
    else:
        last = ""
        while (state := read_sweep(folder)).allocation is not None:
            if (line := ledger_line(state.ledger)) != last:
                print(last := line, flush=True)
            time.sleep(WATCH_EVERY_S)
    print_status(read_sweep(folder), console)


def show_command(cell: str, *, sweep: str | None = None, runs: Path = RUNS, as_json: bool = False) -> int:
    """Print a cell with all its axes, its trials, their outcomes and measures."""
    state = read_sweep(find_sweep(sweep, runs))
    planned = find_cell(state, cell)
    resolved, trials = to_cell(state.sweep, planned), state.of_cell(planned.cell_id)
    if as_json:
        _print_json(
            {
                "schema_version": 1,
                "cell": resolved.model_dump(mode="json"),
                "outcome": state.cell_outcome(planned),
                "because": planned.because,
                "trials": [trial_document(trial) | {"measures": _measures(trial)} for trial in trials],
            }
        )
        return EXIT_OK
    print_cell(planned, resolved, trials, _console())
    return EXIT_OK


def _measures(trial: TrialState) -> dict[str, Any] | None:
    found = trial.document.measures if trial.document is not None else None
    return found.model_dump(mode="json") if found is not None else None


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
    cell: str, *, trial: int | None = None, following: bool = False, sweep: str | None = None, runs: Path = RUNS
) -> int:
    """Print what the ranks of a trial wrote, each line marked with its rank (`!`: stderr).

    Default: the trial that runs, else the first that failed, else the first.
    """
    state = read_sweep(find_sweep(sweep, runs))
    trials = state.of_cell(find_cell(state, cell).cell_id)
    chosen = _choose(trials, trial, cell)
    for line in trial_lines(chosen):
        print(line, file=sys.stderr)
    if not following:
        for line in LogReader(chosen.paths).new_lines(is_last=True):
            print(line)
        return EXIT_OK
    try:
        for line in follow(chosen.paths, chosen.paths.outcome.exists):
            print(line, flush=True)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


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
        _print_json({"schema_version": 1, "sweep": state.sweep.name, "said": said, "ledger": after.ledger})
    else:
        print(f"{state.sweep.name}: {said}; {ledger_line(after.ledger)}")
    return EXIT_OK if after.allocation is None or cell_id is not None else EXIT_TRIALS_FAILED


def _console() -> Console:
    # Off a terminal rich would cut lines at 80 columns, and ids with them.
    return Console() if sys.stdout.isatty() else Console(width=240)


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=1))
