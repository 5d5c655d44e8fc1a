"""`egobench sweep --dry-run` for a Slurm site: what would be submitted, to the letter, and what it would cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TextIO

from egobench.launch.packing import ArrayDraft, Draft, Packing
from egobench.launch.script import array_script
from egobench.launch.slurm import sbatch_text
from egobench.launch.snapshot import snapshot_folder
from egobench.records.allocation import list_allocations
from egobench.records.store import SweepPaths
from egobench.records.sweep import Sweep
from egobench.units import format_count, format_seconds, significant

TOKEN: Final = "000000"
"""Stands for the random end of a job's name."""


def dry_run_document(packing: Packing, sweep: Sweep, paths: SweepPaths) -> dict[str, Any]:
    """Return everything about the submissions as one JSON document."""
    totals = _totals(packing, sweep)
    return {
        "schema_version": 1,
        "sweep": sweep.name,
        "site": sweep.site_name,
        "arrays": [
            {
                "allocations": [one.numbers.start, one.numbers.stop - 1],
                "runtime": one.draft.runtime or None,
                "num_nodes": one.draft.num_nodes,
                "gpus_per_node": one.draft.gpus_per_node,
                "time_limit_min": one.draft.time_limit_min,
                "num_tasks": len(one.array.drafts),
                "parallel": one.array.parallel,
                "nice": one.array.nice,
                "after_arrays": list(one.array.after_arrays),
                "after_allocations": list(one.array.after_allocations),
                "gpu_hours_at_most": round(sum(draft.gpu_hours_at_most for draft in one.array.drafts), 3),
                "trials": [
                    [{"cell_id": ref.cell_id, "trial": ref.trial, "attempt": ref.attempt} for ref in draft.trials]
                    for draft in one.array.drafts
                ],
                "script": one.text,
            }
            for one in _submissions(packing, sweep, paths)
        ],
        "num_jobs": totals.num_jobs,
        "num_trials": totals.num_trials,
        "gpu_hours_expected": round(totals.expected, 3),
        "gpu_hours_at_most": round(totals.at_most, 3),
        "cost_expected": _cost(totals.expected, sweep),
        "cost_at_most": _cost(totals.at_most, sweep),
        "later": [{"cell_id": ref.cell_id, "trial": ref.trial, "attempt": ref.attempt} for ref in packing.later],
        "because": packing.because,
        "notes": list(packing.notes),
    }


def print_dry_run(packing: Packing, sweep: Sweep, paths: SweepPaths, stream: TextIO) -> None:
    """Print the sbatch text of each array under a line about it, then the totals, as comments of the shell."""
    for index, one in enumerate(_submissions(packing, sweep, paths)):
        print(f"# array {index + 1}: {_about(one.array)}", file=stream)
        print(one.text, file=stream)
    totals = _totals(packing, sweep)
    print(f"# arrays: {len(packing.arrays)}, jobs: {totals.num_jobs}, trials: {totals.num_trials}", file=stream)
    print(f"# GPU-hours: {significant(totals.expected)} expected, {significant(totals.at_most)} at most", file=stream)
    price = sweep.site.cost_per_gpu_hour
    if price is not None:
        expected, at_most = totals.expected * price, totals.at_most * price
        print(f"# cost: {expected:.2f} expected, {at_most:.2f} at most ({price:g} a GPU-hour)", file=stream)
    if packing.later:
        print(f"# trials left for later: {format_count(len(packing.later))} ({packing.because})", file=stream)
    for note in packing.notes:
        print(f"# {note}", file=stream)
    print("# nothing was written or submitted", file=stream)


@dataclass(frozen=True)
class _Submission:
    array: ArrayDraft
    numbers: range
    text: str

    @property
    def draft(self) -> Draft:
        return self.array.drafts[0]


@dataclass(frozen=True)
class _Totals:
    num_jobs: int
    num_trials: int
    expected: float
    """GPU-hours."""
    at_most: float


def _submissions(packing: Packing, sweep: Sweep, paths: SweepPaths) -> Iterator[_Submission]:
    code = snapshot_folder(paths)
    first = max((found.number for found in list_allocations(paths)), default=0) + 1
    for array in packing.arrays:
        numbers = range(first, first + len(array.drafts))
        first = numbers.stop
        script = array_script(array, sweep, paths, code, numbers.start, TOKEN)
        before = [f"<array {index + 1}>" for index in array.after_arrays]
        before += [f"<allocation {number}>" for number in array.after_allocations]
        yield _Submission(array, numbers, sbatch_text(script.after(before)))


def _about(array: ArrayDraft) -> str:
    draft, trials = array.drafts[0], sum(len(draft.trials) for draft in array.drafts)
    nodes = "1 node" if draft.num_nodes == 1 else f"{draft.num_nodes} nodes"
    limit = format_seconds((draft.time_limit_min or 0) * 60)
    parts = [
        f"{nodes} x {draft.gpus_per_node} GPUs, {limit}{f', set up for {draft.runtime}' if draft.runtime else ''}",
        f"{len(array.drafts)} tasks, {array.parallel} at once",
        f"{trials} trials, expected {format_seconds(max(one.expected_s for one in array.drafts))} a task at most",
    ]
    return "; ".join(parts)


def _totals(packing: Packing, sweep: Sweep) -> _Totals:
    drafts = [draft for array in packing.arrays for draft in array.drafts]
    return _Totals(
        num_jobs=len(drafts),
        num_trials=sum(len(draft.trials) for draft in drafts),
        expected=sum(draft.num_gpus * draft.expected_s / 3600 for draft in drafts),
        at_most=sum(draft.gpu_hours_at_most for draft in drafts),
    )


def _cost(gpu_hours: float, sweep: Sweep) -> float | None:
    price = sweep.site.cost_per_gpu_hour
    return None if price is None else round(gpu_hours * price, 2)
