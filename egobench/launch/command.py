"""`egobench sweep` as a command: arguments in, text out, exit code back. The CLI adds only the option parsing."""

from __future__ import annotations

import sys
from pathlib import Path

from egobench.errors import EXIT_OK, InvalidInput, Mistake, nearest
from egobench.launch.drive import run_sweep
from egobench.launch.dry_run import dry_run_document, print_dry_run
from egobench.launch.foreseen import parse_share, pruned_line
from egobench.launch.prepare import dry_packing
from egobench.launch.sweep import Todo, Wish, look_up
from egobench.launch.watch.progress import observer_for
from egobench.launch.watch.reader import read_sweep
from egobench.launch.watch.tables import ledger_line, print_json, status_document
from egobench.records.outcome import FAILED, OutcomeName

RUNS = Path("runs")


def sweep_command(
    matrix: Path,
    *,
    runs: Path = RUNS,
    site: str | None = None,
    only: str | None = None,
    limit: int | None = None,
    retry: str | None = None,
    max_attempts: int = 3,
    budget_gpu_hours: float | None = None,
    fail_fast: bool = False,
    detach: bool = False,
    canary: str | None = None,
    dry_run: bool = False,
    as_json: bool = False,
) -> int:
    """Run what is missing of a matrix; 0: all asked for ok, 3: some failed, 5: the machine did, 130: interrupted.

    Raises:
        EgobenchError: mistakes in the matrix, a busy folder, a problem of the machine.
    """
    share = parse_share(canary)
    wish = Wish(site, only, limit, parse_retry(retry), max_attempts, budget_gpu_hours, fail_fast, detach, share)
    todo = look_up(matrix, runs, wish)
    if line := pruned_line(todo.sweep):
        print(line, file=sys.stderr)
    if dry_run:
        return _dry_run(todo, wish, as_json)
    observer = observer_for(sys.stderr)
    try:
        code = run_sweep(todo, wish, observer)
    finally:
        observer.close()
    state = read_sweep(todo.paths.folder)
    if state.not_in_plan:
        print(f"not in the plan any more (kept): {', '.join(state.not_in_plan)}", file=sys.stderr)
    if as_json:
        print_json(status_document(state) | {"exit_code": code})
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


def _dry_run(todo: Todo, wish: Wish, as_json: bool) -> int:
    if todo.sweep.site.launcher == "slurm":
        packing = dry_packing(todo, wish)
        if as_json:
            print_json(dry_run_document(packing, todo.sweep, todo.paths))
        else:
            print_dry_run(packing, todo.sweep, todo.paths, sys.stdout)
        return EXIT_OK
    missing = todo.missing()
    if as_json:
        trials = [{"cell_id": ref.cell_id, "trial": ref.trial, "attempt": ref.attempt} for ref in missing]
        print_json({"schema_version": 1, "sweep": todo.sweep.name, "would_run": trials})
        return EXIT_OK
    for ref in missing:
        print(f"{ref.cell_id} trial {ref.trial}" + (f" (attempt {ref.attempt})" if ref.attempt > 1 else ""))
    print(f"{len(missing)} of {len(todo.asked)} trials would run; nothing was written", file=sys.stderr)
    return EXIT_OK
