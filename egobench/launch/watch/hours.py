"""GPU-hours of a sweep: used, wasted, measured, planned. Functions of documents, and of the clock as an argument."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from egobench.launch.fleet import AllocationState
from egobench.launch.watch.files import AllocationFiles, read_allocations
from egobench.records.allocation import Start
from egobench.records.queue import QueueView
from egobench.records.store import SweepPaths, read_document
from egobench.records.usage import Span, end_of_last_start


@dataclass(frozen=True)
class Hours:
    """GPU-hours (on a site without GPUs: of ranks) of one allocation, or of many."""

    used: float = 0.0
    """From the beginning of each start to its end, whatever was done with it."""
    measured: float = 0.0
    """In steps of the steady state of trials that ended ok."""
    wasted: float = 0.0
    """In trials that did not end ok, idle, or gone with an allocation that was ended from outside."""

    def __add__(self, other: Hours) -> Hours:
        return Hours(self.used + other.used, self.measured + other.measured, self.wasted + other.wasted)

    @property
    def useful_share(self) -> float | None:
        """Return measured over used; None before anything was used."""
        return self.measured / self.used if self.used > 0 else None


def used_gpu_hours(paths: SweepPaths, now: float | None = None) -> float:
    """Return what all allocations of a sweep have used so far."""
    now = time.time() if now is None else now
    view = read_document(paths.queue, QueueView)
    return sum(hours_of(files, files.state(view), now).used for files in read_allocations(paths))


def hours_of(files: AllocationFiles, state: AllocationState, now: float) -> Hours:
    """Return the hours of one allocation: what it wrote, held against what Slurm's accounting told."""
    is_active = state.activity == "active"
    elapsed_s = files.ended.elapsed_s if files.ended is not None else None
    if elapsed_s is None and state.job is not None:
        elapsed_s = state.job.elapsed_s
    spans = {span.start: span for span in files.usage.spans} if files.usage is not None else {}
    booked_s = sum(span.total_s for span in spans.values())
    lengths_s = [_length_s(files, start, spans, is_active, now, elapsed_s) for start in files.starts]
    used_s = max(sum(lengths_s), booked_s, elapsed_s or 0.0)
    # What nobody booked is gone, except for the trial that runs now.
    under_way_s = max(0.0, lengths_s[-1] - _booked_s(spans, files.starts[-1])) if is_active and lengths_s else 0.0
    gone_s = max(0.0, used_s - booked_s - under_way_s)
    wasted_s = sum(span.lost_s + span.idle_s for span in spans.values()) + gone_s
    measured_s = sum(span.measured_s for span in spans.values())
    hours = files.document.num_gpus / 3600
    return Hours(used_s * hours, measured_s * hours, wasted_s * hours)


def _length_s(
    files: AllocationFiles,
    start: Start,
    spans: Mapping[int, Span],
    is_active: bool,
    now: float,
    elapsed_s: float | None,
) -> float:
    booked_s = _booked_s(spans, start)
    if start is not files.starts[-1]:
        return booked_s
    if is_active:
        return max(booked_s, now - start.at)
    if files.ended is None:
        return booked_s
    ended_at = end_of_last_start(files.ended.at, files.ended.state != "", elapsed_s, start.ends_at)
    return booked_s if ended_at is None else max(booked_s, ended_at - start.at)


def _booked_s(spans: Mapping[int, Span], start: Start) -> float:
    span = spans.get(start.number)
    return span.total_s if span is not None else 0.0
