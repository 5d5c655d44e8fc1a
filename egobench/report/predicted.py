"""What was predicted against what was measured: cell by cell, in sum, and as a table of fits and out-of-memory.

Predictions are read from the plan that was submitted; nothing is predicted here. Errors are signed: predicted minus
measured, over measured.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from egobench.hardware import find_gpu
from egobench.records.predicted import VERDICTS, Predicted
from egobench.report.rows import CellRow, SweepRows, TrialRow
from egobench.report.stats import Summary
from egobench.report.tables import exact
from egobench.spec.axes import AXES
from egobench.units import significant

CSV_SCHEMA: Final = 1
"""Raised when a column changes its meaning or its place."""
HEADING: Final = "Predicted and measured"
FATES: Final = ("ran", "oom")
NEAR: Final = 0.1
"""A prediction within this share of the measurement is called near."""
_GIB: Final = 2**30
_PAIRS: Final = (
    ("predicted_allocated_bytes", "peak_allocated_bytes"),
    ("predicted_step_time_s", "step_time_s"),
)  # fmt: skip
"""Field of the prediction -> metric that it foretells."""


@dataclass(frozen=True)
class Foretold:
    """The section of a report."""

    summary: str
    headers: tuple[str, ...] = ()
    num_names: int = 0
    """Columns of text, before those of numbers."""
    lines: tuple[tuple[str, ...], ...] = ()
    fates: tuple[tuple[str, ...], ...] = ()
    """Verdict, and how many cells with it ran and did not fit; nothing where no such cell is over."""
    notes: tuple[str, ...] = ()


def foretold(rows: SweepRows) -> Foretold | None:
    """Return the section; None for a sweep that was planned before there were predictions."""
    known = [(cell, cell.predicted) for cell in rows.trained if cell.predicted is not None]
    if not known:
        return None
    cells = [cell for cell, predicted in known if predicted.verdict is not None]
    if not cells:
        reasons = dict.fromkeys(predicted.because for _, predicted in known)
        return Foretold(f"Nothing was predicted: {'; '.join(reasons)}.")
    names = [name for name in rows.varied if name != "variant"]
    headers = (
        *names, "outcome", "predicted", "predicted use of the GPU (GiB)", "predicted peak (GiB)", "measured peak (GiB)",
        "error (%)", "predicted step (ms)", "measured step (ms)", "error (%)",
    )  # fmt: skip
    lines = tuple((*(cell.axis_text(name) for name in names), *_line(cell)) for cell in cells)
    return Foretold(
        " ".join(_summary(cells)), headers, len(names) + 2, lines, tuple(_fates(cells)), _notes(rows, cells)
    )


def _line(cell: CellRow) -> Iterator[str]:
    found = cell.predicted
    assert found is not None
    yield f"{cell.outcome}{' (canary)' if cell.is_canary else ''}"
    yield str(found.verdict)
    yield _between(found)
    for (field, metric), scale in zip(_PAIRS, (1 / _GIB, 1e3), strict=True):
        predicted, measured = getattr(found, field), cell.summary(metric)
        yield "" if predicted is None else significant(predicted * scale)
        yield "" if measured is None else significant(measured.value * scale)
        yield _percent(error(predicted, measured))


def _between(found: Predicted) -> str:
    ends = (found.predicted_low_bytes, found.predicted_high_bytes)
    used = "-".join(f"{end / _GIB:.1f}" for end in ends if end is not None)
    return used if found.usable_bytes is None else f"{used} of {found.usable_bytes / _GIB:.1f}"


def error(predicted: float | None, measured: Summary | None) -> float | None:
    """Return the signed relative error, None where one of both is missing."""
    if predicted is None or measured is None or not measured.value:
        return None
    return predicted / measured.value - 1


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}"


def _errors(cells: Sequence[CellRow], field: str, metric: str) -> list[float]:
    found = (error(getattr(cell.predicted, field), cell.summary(metric)) for cell in cells if cell.drill is None)
    return [one for one in found if one is not None]


def _summary(cells: Sequence[CellRow]) -> Iterator[str]:
    constants = dict.fromkeys(cell.predicted.constants for cell in cells if cell.predicted and cell.predicted.constants)
    with_what = f" with {', '.join(constants)}" if constants else ""
    yield f"Predicted{with_what} before the trials ran, and kept; predicted numbers stand in no other table."
    for (field, metric), word in zip(_PAIRS, ("Peak memory", "Step time"), strict=True):
        errors = _errors(cells, field, metric)
        if not errors:
            yield f"{word}: no cell has both numbers."
            continue
        middle, near = statistics.median(map(abs, errors)), sum(abs(one) <= NEAR for one in errors)
        yield (
            f"{word}: median error {100 * middle:.1f} % (from {_percent(min(errors))} to {_percent(max(errors))} %), "
            f"within {100 * NEAR:.0f} % for {near} of {len(errors)} cells."
        )
    yield from _canary_text(cells)


def _canary_text(cells: Sequence[CellRow]) -> Iterator[str]:
    pruned = [cell for cell in cells if cell.outcome == "predicted_oom"]
    tried = [cell for cell in cells if cell.is_canary]
    if pruned or tried:
        yield f"Not launched because they were predicted not to fit: {len(pruned)} cells."
    if tried:
        fates = Counter(fate_of(cell) for cell in tried)
        over = fates["oom"] + fates["ran"]
        right = f"right for {fates['oom']} of {over}" if over else "not known yet"
        yield f"Canaries, launched although predicted not to fit: {len(tried)}; the prediction was {right}."


def fate_of(cell: CellRow) -> str:
    """Return `ran`, `oom`, or nothing where neither is known of a cell."""
    if cell.drill is not None:
        return ""
    if any(row.outcome == "oom" for row in cell.trials):
        return "oom"
    return "ran" if cell.num_ok else ""


def _fates(cells: Sequence[CellRow]) -> Iterator[tuple[str, ...]]:
    counts = Counter((str(cell.predicted.verdict), fate_of(cell)) for cell in cells if cell.predicted is not None)
    if any(fate for _, fate in counts):
        for verdict in VERDICTS:
            yield (verdict, *(str(counts[verdict, fate]) for fate in FATES))


def _notes(rows: SweepRows, cells: Sequence[CellRow]) -> tuple[str, ...]:
    found = [cell.predicted for cell in cells if cell.predicted is not None]
    assumed = dict.fromkeys(f"Assumed: {one.assumed}." for one in found if one.assumed)
    no_time = dict.fromkeys(f"No time was predicted where {one.no_time}." for one in found if one.no_time)
    return (*assumed, *no_time, *_other_gpus(rows))


def _other_gpus(rows: SweepRows) -> Iterator[str]:
    """Yield a warning where trials ran on other GPUs than those that were predicted about."""
    meant = find_gpu(rows.sweep.site.gpu)
    provenances = [row.provenance for cell in rows.cells for row in cell.trials if row.provenance is not None]
    used = dict.fromkeys(gpu.name for one in provenances for gpu in one.gpus)
    others = [name for name in used if meant is not None and name not in meant.device_names]
    if meant is not None and others:
        what = f"Predicted for {meant.name}, but trials ran on {', '.join(others)}"
        yield f"{what}: errors say nothing about the formulas."


def predicted_csv(rows: SweepRows) -> str:
    """Return `predicted.csv`: a line per trial, in SI units; nothing where nothing was predicted."""
    cells = [cell for cell in rows.trained if cell.predicted is not None and cell.predicted.verdict is not None]
    if not cells:
        return ""
    axes = [name for name in AXES if any(name in cell.axes for cell in cells)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["cell_id", *axes, "trial", "outcome", "is_canary", *_FIELDS, "schema_version"])
    for cell in cells:
        head = [cell.cell_id, *(cell.axes.get(name, "") for name in axes)]
        for row in cell.trials or (None,):
            fate = ["", cell.outcome] if row is None else [row.trial, row.outcome]
            writer.writerow([*head, *fate, str(cell.is_canary).lower(), *_trial_values(cell, row), CSV_SCHEMA])
    return stream.getvalue()


_FIELDS: Final = (
    "predicted_verdict", "predicted_low_bytes", "predicted_high_bytes", "usable_bytes", "predicted_allocated_bytes",
    "measured_allocated_bytes", "allocated_error", "predicted_step_time_s", "measured_step_time_s", "step_time_error",
    "predicted_tokens_per_s", "measured_tokens_per_s",
)  # fmt: skip


def _trial_values(cell: CellRow, row: TrialRow | None) -> list[Any]:
    found = cell.predicted
    assert found is not None

    def measured(metric: str) -> Summary | None:
        value = None if row is None else cell.values(metric).get(row.trial)
        return None if value is None else Summary(value, None, None, 1)

    memory, time, speed = (measured(name) for name in ("peak_allocated_bytes", "step_time_s", "tokens_per_s"))
    numbers = [
        found.predicted_low_bytes, found.predicted_high_bytes, found.usable_bytes, found.predicted_allocated_bytes,
        None if memory is None else memory.value, error(found.predicted_allocated_bytes, memory),
        found.predicted_step_time_s, None if time is None else time.value, error(found.predicted_step_time_s, time),
        found.predicted_tokens_per_s, None if speed is None else speed.value,
    ]  # fmt: skip
    return [found.verdict, *map(exact, numbers)]
