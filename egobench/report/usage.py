"""What the time of the GPUs went into, over all allocations of a sweep."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from egobench.records.outcome import OutcomeName
from egobench.records.usage import end_of_last_start
from egobench.report.allocations import AllocationRow
from egobench.report.rows import SweepRows
from egobench.report.tables import exact
from egobench.units import significant

KINDS: Final[dict[str, str]] = {
    "measured_s": "measured",
    "warmup_s": "warm-up",
    "evaluation_s": "evaluation",
    "startup_s": "start-up",
    "lost_s": "lost",
    "idle_s": "idle",
    "unrecorded_s": "unrecorded",
}
"""What time can go into: key -> word; in the order of a trial, the useful first."""
MEANING: Final = (
    "Measured: steps of the steady state, in trials that ended ok. Start-up: imports, launches of ranks, loading. "
    "Lost: trials that did not end ok. Idle: between trials, and on the way out."
)
UNRECORDED: Final = "Unrecorded: held by allocations that were ended from outside before they could say what for."
MOST_LINES: Final = 10
"""Allocations that are listed one by one; of more, those with the most time outside measured steps."""
MOST_REASONS: Final = 10
_WHERE: Final = re.compile(r"^rank \d+, \w+(?:, step -?\d+)?: ")
"""Where a trial was when it was interrupted says nothing of why."""
USAGE_SCHEMA: Final = 1
"""Raised when a column of usage.csv changes its meaning or its place."""


@dataclass(frozen=True)
class UsageLine:
    """One allocation, or all of them together."""

    name: str
    resources: str
    """Its class: nodes x GPUs of each; empty for all together."""
    num_starts: int
    num_trials: int
    """Launches of trials, so that one that was launched again counts each time."""
    gpu_s: Mapping[str, float]
    """GPU-seconds (on a site without GPUs: of ranks) of each of `KINDS`."""

    @property
    def total_gpu_s(self) -> float:
        return sum(self.gpu_s.values())

    @property
    def hours(self) -> str:
        """Return the GPU-hours as text."""
        return significant(self.total_gpu_s / 3600)

    def share(self, kind: str) -> float | None:
        """Return which part of the whole went into it; None where there is no whole."""
        return self.gpu_s[kind] / self.total_gpu_s if self.total_gpu_s > 0 else None

    def percent(self, kind: str) -> str:
        """Return the share as text, without its sign; empty where there is no whole."""
        share = self.share(kind)
        return "" if share is None else f"{100 * share:.1f}" if share > 0 else "0"


@dataclass(frozen=True)
class UsageTable:
    """What the report shows of the time of all allocations."""

    unit: str
    """What time is counted of: `GPU` or `rank`."""
    lines: tuple[UsageLine, ...]
    """All allocations that started, or the least useful of many."""
    total: UsageLine
    num_allocations: int
    """That started."""
    num_unstarted: int
    num_open: int
    """Started, without an end on record."""

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds that have a column: `unrecorded` only where there is some."""
        return tuple(kind for kind in KINDS if kind != "unrecorded_s" or self.total.gpu_s[kind] > 0)

    @property
    def summary(self) -> str:
        """Say the whole in one sentence."""
        useful = self.total.percent("measured_s") or "0"
        many = f"{self.num_allocations} allocation{'' if self.num_allocations == 1 else 's'}"
        return f"{self.total.hours} {self.unit}-hours in {many}, {useful} % of them in measured steps."

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what the words mean, and what the table leaves out."""
        notes = [MEANING, UNRECORDED if "unrecorded_s" in self.kinds else ""]
        if len(self.lines) < self.num_allocations:
            notes.append(
                f"Listed are the {len(self.lines)} of {self.num_allocations} allocations with the most time outside "
                "measured steps, the worst first; the last row counts all."
            )
        if self.num_open:
            notes.append(f"{_have(self.num_open)} no end on record, and counts up to the last sign of life.")
        if self.num_unstarted:
            notes.append(f"{_have(self.num_unstarted)} no start on record, and no row.")
        return tuple(note for note in notes if note)


def _have(count: int) -> str:
    return f"{count} allocation{' has' if count == 1 else 's have'}"


@dataclass(frozen=True)
class Relaunches:
    """Launches beyond the first, and why the ones before them were not final."""

    num_trials: int
    num_planned: int
    num_launches: int
    reasons: tuple[tuple[OutcomeName | None, str, int], ...]
    """(outcome, because, launches), the most frequent first."""

    @property
    def summary(self) -> str:
        """Say it in one sentence."""
        if not self.num_launches:
            return "No trial was launched a second time."
        was = "was" if self.num_trials == 1 else "were"
        launches = f"{self.num_launches} launch{'' if self.num_launches == 1 else 'es'}"
        return f"{self.num_trials} of {self.num_planned} trials {was} launched again: {launches} beyond the first."


def heading(rows: SweepRows) -> str:
    """Return what the section is called."""
    return "Where the GPU time went" if unit(rows) == "GPU" else "Where the ranks' time went"


def unit(rows: SweepRows) -> str:
    """Return what time is counted of: `GPU`, or `rank` on a site without any."""
    return "GPU" if rows.sweep.site.device == "cuda" else "rank"


def usage_table(rows: SweepRows) -> UsageTable | None:
    """Return what the time went into; None where no allocation left a word about it."""
    started = [one for one in rows.allocations if is_recorded(one)]
    if not started:
        return None
    lines = _lines(rows, started)
    total = UsageLine(
        "all", "", sum(line.num_starts for line in lines), sum(line.num_trials for line in lines),
        {kind: sum(line.gpu_s[kind] for line in lines) for kind in KINDS},
    )  # fmt: skip
    return UsageTable(
        unit=unit(rows),
        lines=tuple(lines if len(lines) <= MOST_LINES else _least_useful(lines)),
        total=total,
        num_allocations=len(started),
        num_unstarted=len(rows.allocations) - len(started),
        num_open=sum(one.ended_at is None for one in started),
    )


def is_recorded(one: AllocationRow) -> bool:
    """Return whether the allocation said anything about its time."""
    return bool(one.starts or one.spans)


def _least_useful(lines: Sequence[UsageLine]) -> list[UsageLine]:
    return sorted(lines, key=lambda line: line.gpu_s["measured_s"] - line.total_gpu_s)[:MOST_LINES]


def _lines(rows: SweepRows, started: Sequence[AllocationRow]) -> list[UsageLine]:
    lost_at = _last_losses(rows)
    return [_line(one, seconds_of(one, lost_at.get(one.number))) for one in started]


def _last_losses(rows: SweepRows) -> dict[int, float]:
    """Return when each allocation's last lost trial was seen last: a sign of life where it could not say so itself."""
    signs: dict[int, float] = {}
    for one in (one for cell in rows.cells for row in cell.trials for one in row.earlier):
        if one.allocation is not None and one.ended_at is not None:
            signs[one.allocation] = max(signs.get(one.allocation, 0.0), one.ended_at)
    return signs


def _line(one: AllocationRow, seconds: Mapping[str, float]) -> UsageLine:
    gpu_s = {kind: seconds[kind] * one.num_gpus for kind in KINDS}
    resources = f"{one.num_nodes} x {one.gpus_per_node}"
    return UsageLine(str(one.number), resources, _num_starts(one), sum(s.num_trials for s in one.spans), gpu_s)


def _num_starts(one: AllocationRow) -> int:
    return len({start.number for start in one.starts} | {span.start for span in one.spans})


def seconds_of(one: AllocationRow, lost_at: float | None = None) -> dict[str, float]:
    """Return the seconds of an allocation, by kind; times `num_gpus` they are GPU-seconds.

    Args:
        one: The allocation.
        lost_at: When a trial that it lost was seen last, Unix time, s.
    """
    booked = {kind: sum(getattr(span, kind) for span in one.spans) for kind in KINDS if kind != "unrecorded_s"}
    return booked | {"unrecorded_s": max(0.0, _held_s(one, lost_at) - sum(booked.values()))}


def _held_s(one: AllocationRow, lost_at: float | None) -> float:
    """Return how long the allocation held its nodes, as far as it, its trials or Slurm's accounting tell."""
    lengths_s = {span.start: span.total_s for span in one.spans}
    ended_at = _ended_at(one, lost_at)
    if one.starts and ended_at is not None:
        last = one.starts[-1]
        lengths_s[last.number] = max(lengths_s.get(last.number, 0.0), ended_at - last.at)
    return max(sum(lengths_s.values()), one.elapsed_s or 0.0)


def _ended_at(one: AllocationRow, lost_at: float | None) -> float | None:
    """Return when the last start ended, at least; None where its own word, or accounting, is better."""
    if one.ended_at is None:
        return lost_at
    ends_at = one.starts[-1].ends_at if one.starts else None
    return end_of_last_start(one.ended_at, one.ended_from_outside, one.elapsed_s, ends_at)


def relaunches(rows: SweepRows) -> Relaunches:
    """Count the launches beyond the first, and why they were needed."""
    trials = [row for cell in rows.cells for row in cell.trials]
    earlier = [one for row in trials for one in row.earlier]
    counted = Counter((one.outcome, _WHERE.sub("", one.because)) for one in earlier)
    return Relaunches(
        num_trials=sum(bool(row.earlier) for row in trials),
        num_planned=len(trials),
        num_launches=len(earlier),
        reasons=tuple((outcome, because, count) for (outcome, because), count in counted.most_common()),
    )


def usage_csv(rows: SweepRows) -> str:
    """Return `usage.csv`: one line per allocation that started; empty where none left a word."""
    started = [one for one in rows.allocations if is_recorded(one)]
    if not started:
        return ""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = ("allocation", "num_nodes", "gpus_per_node", "num_gpus", "num_starts", "num_trials", "has_ended")
    writer.writerow((*head, "total_s", *KINDS, "schema_version"))
    for one, line in zip(started, _lines(rows, started), strict=True):
        facts = [one.number, one.num_nodes, one.gpus_per_node, one.num_gpus, line.num_starts, line.num_trials]
        seconds = [gpu_s / one.num_gpus for gpu_s in (line.total_gpu_s, *line.gpu_s.values())]
        has_ended = str(one.ended_at is not None).lower()
        writer.writerow([*facts, has_ended, *map(exact, seconds), USAGE_SCHEMA])
    return stream.getvalue()
