"""Read a sweep folder into rows. Files in, rows out; nothing is computed twice and nothing is guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

from egobench.errors import InvalidInput, Mistake
from egobench.records.allocation import AllocationPaths, is_living, living_claim
from egobench.records.measures import MergedStep
from egobench.records.outcome import NOT_RUN, Outcome, OutcomeName
from egobench.records.provenance import Provenance
from egobench.records.store import SweepPaths, TrialPaths, read_document, read_lines
from egobench.records.sweep import PlannedCell, Sweep
from egobench.report.allocations import AllocationRow, read_allocations, read_earlier
from egobench.report.rows import CellRow, Curve, SweepRows, TrialRow, outcome_of, varied_axes

Lives = Callable[[AllocationPaths], bool]
"""Tells whether an allocation lives."""
CURVE_POINTS: Final = 64
"""Points kept of a trial's steps, first and last included."""


def collect(folder: Path) -> SweepRows:
    """Read `runs/<sweep>`.

    Raises:
        InvalidInput: the folder holds no readable `sweep.json`.
    """
    paths = SweepPaths(folder)
    sweep = read_document(paths.sweep, Sweep)
    if sweep is None:
        what = "no readable sweep.json" if paths.sweep.exists() else "no sweep.json"
        todo = "name a folder under runs/, or run `egobench sweep` first"
        raise InvalidInput([Mistake(str(folder), what, "a folder that `egobench sweep` wrote", todo)])
    lives = cache(is_living)  # asked of an allocation once, not once for each of its trials
    trials = {cell.cell_id: _read_trials(paths, cell, sweep.trials, lives) for cell in sweep.runnable()}
    return assemble(sweep, trials, read_allocations(paths))


def assemble(
    sweep: Sweep, trials: dict[str, tuple[TrialRow, ...]], allocations: tuple[AllocationRow, ...] = ()
) -> SweepRows:
    """Join the plan with what its trials left."""
    cells = tuple(_cell(cell, trials.get(cell.cell_id, ())) for cell in sweep.cells)
    return SweepRows(sweep, mark_stale(cells), varied_axes(cells, sweep.varied), allocations)


def _cell(cell: PlannedCell, trials: tuple[TrialRow, ...]) -> CellRow:
    outcome, because = (cell.outcome, cell.because) if cell.outcome in NOT_RUN else outcome_of(trials)
    return CellRow(cell.cell_id, cell.axes, outcome, because, trials, cell.drill, cell.predicted, cell.is_canary)


def _read_trials(paths: SweepPaths, cell: PlannedCell, num_trials: int, lives: Lives) -> tuple[TrialRow, ...]:
    return tuple(_read_trial(paths.trial(cell.cell_id, trial), trial, lives) for trial in range(num_trials))


def _read_trial(paths: TrialPaths, trial: int, lives: Lives) -> TrialRow:
    document = read_document(paths.outcome, Outcome)
    if document is None:
        outcome: OutcomeName = "running" if living_claim(paths, lives) is not None else "pending"
        return TrialRow(trial, outcome, earlier=read_earlier(paths))
    provenance = read_document(paths.provenance, Provenance)
    curve = thin(read_lines(paths.steps, MergedStep))
    return TrialRow(trial, document.outcome, document, provenance, curve, read_earlier(paths))


def thin(steps: Sequence[MergedStep], points: int = CURVE_POINTS) -> Curve:
    """Keep evenly spread steps, the first and the last included, at six significant digits."""
    last = len(steps) - 1
    count = min(points, len(steps))
    kept = sorted({round(index * last / max(1, count - 1)) for index in range(count)})
    return Curve(
        step=tuple(steps[index].step for index in kept),
        step_time_s=tuple(float(f"{steps[index].step_time_s:.6g}") for index in kept),
        loss=tuple(float(f"{steps[index].loss:.6g}") for index in kept),
    )


def environment(provenance: Provenance) -> tuple[object, ...]:
    """Return what makes two environments the same."""
    drivers = tuple(sorted({gpu.driver or "" for gpu in provenance.gpus}))
    packages = tuple(sorted(provenance.packages.items()))
    return (provenance.python, packages, provenance.cuda, provenance.nccl, drivers, provenance.allocator)


def hardware(provenance: Provenance) -> tuple[object, ...]:
    """Return what makes two machines the same kind."""
    gpus = tuple(sorted(Counter(gpu.name for gpu in provenance.gpus).items()))
    return (gpus, provenance.cpu, provenance.num_cpus)


def mark_stale(cells: tuple[CellRow, ...]) -> tuple[CellRow, ...]:
    """Mark the cells whose trials ran with other code, packages, data or weights than the newest trial.

    Data and weights are compared among cells of the same workload and image size only.
    """
    newest: dict[tuple[object, ...], tuple[float, object]] = {}
    for cell in cells:
        for key, digest, started_at in _digests(cell):
            if key not in newest or started_at > newest[key][0]:
                newest[key] = (started_at, digest)
    marked = []
    for cell in cells:
        stale = {str(key[0]) for key, digest, _ in _digests(cell) if digest != newest[key][1]}
        marked.append(replace(cell, stale=tuple(sorted(stale))))
    return tuple(marked)


def _digests(cell: CellRow) -> Iterable[tuple[tuple[object, ...], object, float]]:
    inputs = (cell.axes.get("workload"), cell.axes.get("image_px"))
    for row in cell.trials:
        if row.provenance is not None and row.document is not None:
            at = row.document.started_at
            yield ("code",), row.provenance.code_digest, at
            yield ("environment",), environment(row.provenance), at
            yield ("data", *inputs), row.provenance.data_digest, at
            yield ("model", *inputs), row.provenance.model_digest, at
