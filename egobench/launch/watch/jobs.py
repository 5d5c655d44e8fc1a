"""What `status` says about the allocations of a sweep: Slurm's queue in words, GPU-hours, the time left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from egobench.launch.fleet import AllocationState
from egobench.launch.queue.reasons import can_never_start, explain
from egobench.launch.watch.state import SweepState
from egobench.units import format_seconds, significant

NAMED: Final = 3
"""Jobs named of those that share a reason."""


def job_lines(state: SweepState) -> Iterable[str]:
    """Yield what Slurm says of the sweep's jobs; nothing where no job waits or runs."""
    jobs = [found for found in state.allocations if state.files[found.paths.number].job is not None]
    if not jobs:
        return
    kinds = {"active": "run", "waiting": "wait", "unknown": "are in doubt"}
    counts = {word: sum(job.activity == activity for job in jobs) for activity, word in kinds.items()}
    yield "jobs: " + ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    yield from _reason_lines(state, [job for job in jobs if job.activity == "waiting"])
    yield from _view_lines(state)


def _reason_lines(state: SweepState, waiting: list[AllocationState]) -> Iterable[str]:
    reasons: dict[str, list[str]] = {}
    for found in waiting:
        assert found.job is not None  # a job that Slurm does not know is not `waiting`
        reasons.setdefault(found.job.reason, []).append(found.job.job_id)
    for reason, ids in sorted(reasons.items(), key=lambda item: (not can_never_start(item[0]), -len(item[1]))):
        named = ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
        head = f"{len(ids)} can never start" if can_never_start(reason) else f"{len(ids)} wait"
        yield f"  {head}: " + ": ".join(part for part in (reason or "no reason given", explain(reason)) if part)
        if can_never_start(reason):
            yield f"    {named}; `egobench cancel {state.paths.folder}` takes them out of the queue"


def _view_lines(state: SweepState) -> Iterable[str]:
    view = state.view
    if view is None or (view.squeue_at is None and not view.problem):
        yield "  Slurm was not asked yet"
    elif view.problem and view.squeue_at is None:
        yield f"  Slurm does not answer: {view.problem}"
    elif view.problem and view.squeue_at is not None:
        age = format_seconds(max(0.0, state.at - view.squeue_at))
        yield f"  Slurm does not answer ({view.problem}); this is what it said {age} ago"


def job_documents(state: SweepState) -> list[dict[str, Any]]:
    """Return what `--json` says of the allocations that wait or run."""
    return [_job_document(state, found) for found in state.allocations]


def _job_document(state: SweepState, found: AllocationState) -> dict[str, Any]:
    files = state.files[found.paths.number]
    reason = found.job.reason if found.job is not None else ""
    return {
        "allocation": found.paths.number,
        "activity": found.activity,
        "job_id": files.job.job_id if files.job is not None else None,
        "state": found.job.state if found.job is not None else None,
        "reason": reason,
        "explanation": explain(reason),
        "can_never_start": found.activity == "waiting" and can_never_start(reason),
        "num_gpus": files.document.num_gpus,
        "num_starts": len(files.starts),
        "nodes": list(files.starts[-1].nodes) if files.starts else [],
        "log": str(found.paths.log),
    }


def queue_document(state: SweepState) -> dict[str, Any] | None:
    """Return when Slurm answered last, and why not since; None where it was never asked."""
    if state.view is None:
        return None
    return {"answered_at": state.view.squeue_at, "problem": state.view.problem}


def hours_lines(state: SweepState) -> Iterable[str]:
    """Yield what the GPUs have done, once they have done anything."""
    hours = state.hours
    if hours.used <= 0:
        return
    what = "GPU-hours" if state.sweep.site.device == "cuda" else "rank-hours"
    parts = [f"{significant(hours.used)} used (the plan: about {significant(state.planned_gpu_hours)})"]
    if (share := hours.useful_share) is not None:
        parts.append(f"{share:.0%} of it in measured steps")
    parts.append(f"{significant(hours.wasted)} wasted")
    if state.num_repeats:
        parts.append(f"{state.num_repeats} attempts beyond the first")
    yield f"{what}: {', '.join(parts)}"


def hours_document(state: SweepState) -> dict[str, Any]:
    """Return the GPU-hours for `--json`."""
    hours = state.hours
    return {
        "used": hours.used,
        "planned": state.planned_gpu_hours,
        "measured": hours.measured,
        "wasted": hours.wasted,
        "useful_share": hours.useful_share,
    }


def eta_line(state: SweepState) -> str | None:
    """Return the time left; None where nothing runs, or nothing has ended yet to learn from."""
    if not state.allocations or not state.eta_s:
        return None
    left = f"about {format_seconds(state.eta_s)} left"
    if len(state.allocations) == 1:
        return left
    what = f"with {state.num_lanes} allocations at a time"
    return f"{left} {what}" if state.active else f"{left} once jobs run, {what}"
