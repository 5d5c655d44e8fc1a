"""What is predicted of cells, as columns of a plan and as lines for people."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Final

from egobench.plan.cells import CellText
from egobench.plan.finders import Mark
from egobench.plan.tally import Outlook, cost_of
from egobench.predict.forecast import Forecast
from egobench.spec.site import Site
from egobench.units import format_count, format_seconds, significant

COLUMNS: Final = (
    "predicted_verdict", "predicted_allocated_bytes", "predicted_low_bytes", "predicted_high_bytes", "usable_bytes",
    "predicted_margin_bytes", "predicted_micro_batch_size", "predicted_step_time_s", "predicted_tokens_per_s",
    "predicted_trial_s", "predicted_gpu_hours", "predicted_cost", "not_predicted",
)  # fmt: skip
"""Of CSV, and keys of a cell in JSON; GPU-hours and cost are those of all trials of the cell."""
SHOWN: Final = (
    "predicted_verdict", "predicted_peak_gib", "predicted_step_time", "predicted_tokens_per_s", "predicted_gpu_hours",
)  # fmt: skip
"""Of Markdown and of the summary."""
_DIGITS: Final = 6
_GIB: Final = 2**30
_MOST_SHOWN: Final = 12


def columns_of(mark: Mark, site: Site, trials: int) -> dict[str, Any]:
    """Return what is predicted of a point, in SI units; nothing for a point that is dropped for another reason."""
    if mark.forecast is None:
        return {}
    found = mark.forecast
    hours = gpu_hours(mark, trials)
    return {
        "predicted_verdict": found.verdict,
        "predicted_allocated_bytes": _whole(found.predicted_allocated_bytes),
        "predicted_low_bytes": _whole(found.predicted_low_bytes),
        "predicted_high_bytes": _whole(found.predicted_high_bytes),
        "usable_bytes": _whole(found.usable_bytes),
        "predicted_margin_bytes": _margin(found),
        "predicted_micro_batch_size": found.predicted_micro_batch_size,
        "predicted_step_time_s": _short(found.predicted_step_time_s),
        "predicted_tokens_per_s": _short(found.predicted_tokens_per_s),
        "predicted_trial_s": _short(found.predicted_trial_s),
        "predicted_gpu_hours": _short(hours),
        "predicted_cost": None if hours is None else cost_of(hours, site),
        "not_predicted": found.because or found.no_time,
    }


def _margin(found: Forecast) -> int | None:
    """Return what is left of the GPU at the low end; less than nothing: it does not fit."""
    if found.usable_bytes is None or found.predicted_low_bytes is None:
        return None
    return round(found.usable_bytes - found.predicted_low_bytes)


def gpu_hours(mark: Mark, trials: int) -> float | None:
    """Return what all trials of a point that runs are predicted to take."""
    return None if mark.trial_s is None or not mark.runs else trials * mark.gpus * mark.trial_s / 3600


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def shown_of(mark: Mark, trials: int) -> list[str]:
    """Return what is predicted of a point as people read it, column by column of `SHOWN`."""
    if mark.forecast is None:
        return [""] * len(SHOWN)
    found, hours = mark.forecast, gpu_hours(mark, trials)
    return [
        found.verdict or "",
        _interval(found),
        _said(found.predicted_step_time_s, format_seconds),
        _said(found.predicted_tokens_per_s, lambda value: format_count(round(value))),
        _said(hours, significant),
    ]


def _interval(found: Forecast) -> str:
    ends = [one / _GIB for one in (found.predicted_low_bytes, found.predicted_high_bytes) if one is not None]
    return f"{'-'.join(f'{end:.1f}' for end in ends)}"


def _said(value: float | None, say: Any) -> str:
    return "" if value is None else str(say(value))


def outlook_lines(outlook: Outlook, num_runs: int) -> Iterator[str]:
    """Yield what is predicted of all cells together."""
    counts, timed = outlook.verdicts, outlook.num_timed
    if any(counts.values()):
        with_what = f" with {', '.join(outlook.constants)}" if outlook.constants else ""
        yield (
            f"Predicted{with_what}, not measured: {counts['fits']:,} cells fit, {counts['risky']:,} risky, "
            f"{counts['predicted_oom']:,} out of memory"
        )
        for text in outlook.assumed[:3]:
            yield f"  assumed: {text}"
    if timed:
        cost = f", {format_count(outlook.predicted_cost)} at the site's price" if outlook.predicted_cost else ""
        hours = format_count(outlook.predicted_gpu_hours)
        yield f"  about {hours} GPU-hours{cost}, for {timed:,} of {num_runs:,} cells"
    if outlook.num_too_long:
        yield f"  {outlook.num_too_long:,} of these would take longer than the site's trial_time_limit_s"
    for text, count in itertools.islice(outlook.no_time.items(), 3):
        yield f"  no time for {count:,}: {text}"
    for text, count in itertools.islice(outlook.no_verdict.items(), 3):
        yield f"Not predicted: {count:,} {'cell' if count == 1 else 'cells'}, because {text}"
    if any(counts.values()) or outlook.no_verdict:
        yield ""


def pruned_lines(cells: Iterable[CellText], count: int) -> Iterator[str]:
    """Yield the cells that are not launched because they cannot fit."""
    if not count:
        return
    yield f"Predicted out of memory, not launched (`egobench sweep --canary 5%` tries some): {count:,}"
    pruned = (cell for cell in cells if cell[2].outcome == "predicted_oom")
    for cell_id, _, mark, _ in itertools.islice(pruned, _MOST_SHOWN):
        yield f"  {cell_id}  {mark.because}"
    if count > _MOST_SHOWN:
        yield f"  ... and {count - _MOST_SHOWN:,} more (--json, --csv or --md lists all)"
    yield ""
