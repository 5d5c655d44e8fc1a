"""Does the sweep show what its targets ask for? Which cells reach all of them together, and which miss by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from egobench.records.outcome import NOT_RUN, UNFINISHED
from egobench.records.sweep import Sweep
from egobench.report.metrics import METRICS, show_summary
from egobench.report.rows import CellRow, SweepRows
from egobench.report.stats import Summary, paired_difference, paired_ratio
from egobench.units import significant

TargetName = Literal["throughput", "peak_memory", "accuracy_drop"]


@dataclass(frozen=True)
class Target:
    """One target of the matrix, ready to be checked against a number."""

    name: TargetName
    metric: str
    bound: float
    is_ceiling: bool
    """The number must stay at or below the bound."""
    strict: bool = False
    """Reaching the bound itself is not enough."""

    def reached(self, value: float) -> bool:
        """Return whether a value reaches the target."""
        if self.strict:
            return value < self.bound
        return value <= self.bound if self.is_ceiling else value >= self.bound

    @property
    def text(self) -> str:
        """Return the target in words."""
        if self.name == "accuracy_drop":
            return f"{METRICS[self.metric].label.split()[0]} drop < {self.bound:g} points"
        what = "throughput" if self.name == "throughput" else "peak memory"
        return f"{what} {'<=' if self.is_ceiling else '>='} {self.bound:g}x baseline"


@dataclass(frozen=True)
class Check:
    """One target of one cell."""

    target: Target
    summary: Summary | None
    """Ratio or drop against the workload's baseline, paired by trial."""
    reached: bool | None
    """None: not decided, for lack of data."""
    resolution: float | None = None
    """Accuracy only: half the 95 % interval over the questions, in points."""

    @property
    def firm(self) -> bool:
        """Return whether both ends of the range or interval say the same as its middle."""
        one = self.summary
        if one is None or one.low is None or one.high is None:
            return False
        return self.target.reached(one.low) == self.target.reached(one.high) == self.reached

    @property
    def text(self) -> str:
        """Return the number with its range."""
        places = 2 if self.target.name == "accuracy_drop" else None
        return "" if self.summary is None else show_summary(self.summary, places=places)

    @property
    def gap(self) -> str:
        """Return by how much a missed target is missed."""
        if self.summary is None or self.reached is not False:
            return ""
        unit = " points" if self.target.name == "accuracy_drop" else "x"
        short = abs(self.summary.value - self.target.bound)
        return f"misses {self.target.name.replace('_', ' ')} by {significant(short, 2)}{unit}"

    @property
    def caveat(self) -> str:
        """Return why a reached target is not firm; empty if it is."""
        name, one = self.target.name.replace("_", " "), self.summary
        if one is None or one.low is None:
            return f"{name}: one trial"
        if not self.firm:
            return f"{name}: the {one.kind} crosses the bound"
        if self.resolution is not None and self.resolution > self.target.bound:
            return f"{name}: the questions resolve only +-{significant(self.resolution, 2)} points"
        return ""


@dataclass(frozen=True)
class CellVerdict:
    """All targets of one cell, together."""

    cell: CellRow
    checks: tuple[Check, ...]
    reached: bool | None
    because: str

    @property
    def distance(self) -> float:
        """Return how far the missed targets are, each relative to its bound."""
        missed = [check for check in self.checks if check.reached is False and check.summary is not None]
        return sum(abs(one.summary.value / one.target.bound - 1) for one in missed if one.summary)


@dataclass(frozen=True)
class WorkloadVerdict:
    """The cells of one workload against its baseline."""

    workload: str
    baseline: CellRow
    cells: tuple[CellVerdict, ...]

    @property
    def targets_met(self) -> bool | None:
        """True: some cell reaches all targets together; None: not decided."""
        if self.baseline.outcome != "ok" or not self.cells:
            return None
        states = [cell.reached for cell in self.cells]
        return True if True in states else None if None in states else False

    @property
    def text(self) -> str:
        """Return what stands after the colon of the headline."""
        if self.baseline.outcome != "ok":
            return f"the baseline is {self.baseline.outcome}"
        if not self.cells:
            return "there is no cell beside the baseline"
        states = [cell.reached for cell in self.cells]
        if self.targets_met:
            return f"{states.count(True)} of {len(states)} cells reach all targets together"
        if self.targets_met is None:
            return f"no cell reaches all targets yet, and {states.count(None)} of {len(states)} cells lack data"
        return f"none of {len(states)} cells reaches all targets together"

    def ranked(self) -> list[CellVerdict]:
        """Return the cells that reach all targets, then those that miss the fewest by the least, then the rest."""
        return sorted(self.cells, key=lambda one: (one.reached is not True, not one.checks, one.distance))


@dataclass(frozen=True)
class SweepVerdict:
    """The answer that stands first in the report."""

    targets: tuple[Target, ...]
    workloads: tuple[WorkloadVerdict, ...]
    """Those that have a baseline; the cells of the others are not compared."""
    headline: str

    @property
    def targets_met(self) -> bool | None:
        """True: of every compared workload some cell reaches all targets together; None: not decided."""
        states = [one.targets_met for one in self.workloads]
        return None if not states else False if False in states else None if None in states else True

    @property
    def cells(self) -> tuple[CellVerdict, ...]:
        """Return the cells that are compared, workload by workload."""
        return tuple(cell for one in self.workloads for cell in one.cells)

    @property
    def reaching(self) -> tuple[CellVerdict, ...]:
        """Return the cells that reach all targets together."""
        return tuple(cell for cell in self.cells if cell.reached)

    def ranked(self, limit: int) -> list[CellVerdict]:
        """Return about `limit` cells, workload by workload, each with its share of best ones."""
        share = max(3, limit // max(1, len(self.workloads)))
        return [cell for one in self.workloads for cell in one.ranked()[:share]]


def stated_targets(sweep: Sweep) -> tuple[Target, ...]:
    """Return the targets that the matrix states, in a fixed order."""
    wanted, found = sweep.targets, []
    if wanted.throughput is not None:
        found.append(Target("throughput", "tokens_per_s", wanted.throughput.at_least, False))
    if wanted.peak_memory is not None:
        found.append(Target("peak_memory", "peak_memory_bytes", wanted.peak_memory.at_most, True))
    if wanted.accuracy_drop is not None:
        metric = f"{wanted.accuracy_drop.metric}_after"
        found.append(Target("accuracy_drop", metric, wanted.accuracy_drop.below_points, True, strict=True))
    return tuple(found)


def decide(rows: SweepRows) -> SweepVerdict:
    """Check every cell against every target and its own workload's baseline, and the sweep as a whole."""
    targets = stated_targets(rows.sweep)
    if not targets:
        return SweepVerdict((), (), "No targets are stated in the matrix.")
    if not rows.baselines:
        return SweepVerdict(targets, (), "Not decided: the matrix names no baseline.")
    judged = tuple(_judge_workload(rows, baseline, targets) for baseline in rows.baselines)
    verdict = SweepVerdict(targets, judged, "")
    return replace(verdict, headline=_headline(judged, verdict.targets_met, rows.not_compared))


def _judge_workload(rows: SweepRows, baseline: CellRow, targets: Sequence[Target]) -> WorkloadVerdict:
    others = [cell for cell in rows.cells if cell.workload == baseline.workload and cell is not baseline]
    judged = tuple(_judge_cell(cell, baseline, targets) for cell in others if cell.drill is None)
    return WorkloadVerdict(baseline.workload, baseline, judged)


def _judge_cell(cell: CellRow, baseline: CellRow, targets: Sequence[Target]) -> CellVerdict:
    if cell.outcome in UNFINISHED:
        return CellVerdict(cell, (), None, f"not decided: {cell.outcome}, {cell.num_ok} of {len(cell.trials)} trials")
    if cell.outcome in NOT_RUN or cell.outcome == "parent_failed":
        return CellVerdict(cell, (), False, f"not run: {cell.outcome}")
    if cell.outcome != "ok":
        return CellVerdict(cell, (), False, f"did not finish: {cell.outcome}")
    if baseline.outcome != "ok":
        return CellVerdict(cell, (), None, f"not decided: the baseline is {baseline.outcome}")
    checks = tuple(_check(cell, baseline, target) for target in targets)
    states = [check.reached for check in checks]
    reached = False if False in states else None if None in states else True
    return CellVerdict(cell, checks, reached, _because(checks, reached))


def _check(cell: CellRow, baseline: CellRow, target: Target) -> Check:
    mine, theirs = cell.values(target.metric), baseline.values(target.metric)
    summary = paired_difference(theirs, mine) if target.name == "accuracy_drop" else paired_ratio(mine, theirs)
    reached = None if summary is None else target.reached(summary.value)
    return Check(target, summary, reached, _resolution(cell, target) if target.name == "accuracy_drop" else None)


def _resolution(cell: CellRow, target: Target) -> float | None:
    name = target.metric.removesuffix("_after")
    answers = [row.document.measures.after for row in cell.trials if row.document and row.document.measures]
    halves = [(getattr(one, f"{name}_high") - getattr(one, f"{name}_low")) / 2 for one in answers if one is not None]
    return max(halves, default=None)


def _because(checks: Sequence[Check], reached: bool | None) -> str:
    if reached:
        caveats = [check.caveat for check in checks if check.caveat]
        return f"reached, but not firmly ({'; '.join(caveats)})" if caveats else "reached, firmly"
    missing = [f"no data on {check.target.name.replace('_', ' ')}" for check in checks if check.reached is None]
    return "; ".join([*(check.gap for check in checks if check.gap), *missing])


def _headline(judged: Sequence[WorkloadVerdict], met: bool | None, not_compared: Sequence[str]) -> str:
    answer = {True: "Targets met", False: "Targets not met", None: "Not decided"}[met]
    if len(judged) == 1:
        text = f"{answer}: {judged[0].text}."
    else:
        each = "; ".join(f"{one.workload}: {one.text}" for one in judged)
        text = f"{answer} for every workload. {each}."
    return f"{text} {not_compared_text(not_compared)}".rstrip()


def not_compared_text(workloads: Sequence[str]) -> str:
    """Say which workloads have no baseline; empty if all have one."""
    return f"Not compared, for want of a baseline: {', '.join(workloads)}." if workloads else ""


def pareto(rows: SweepRows) -> tuple[CellRow, ...]:
    """Return the comparable cells that no other of their workload beats in both throughput and peak memory.

    Workload by workload, fastest first.
    """
    return tuple(cell for workload in rows.workloads for cell in _front(rows, workload))


def _front(rows: SweepRows, workload: str) -> list[CellRow]:
    points = []
    for cell in rows.cells:
        speed, memory = cell.summary("tokens_per_s"), cell.summary("peak_memory_bytes")
        if cell.workload == workload and cell.comparable and speed is not None and memory is not None:
            points.append((speed.value, memory.value, cell))
    front: list[CellRow] = []
    least = float("inf")
    for _, memory_bytes, cell in sorted(points, key=lambda point: (-point[0], point[1])):
        if memory_bytes < least:
            front.append(cell)
            least = memory_bytes
    return front


def as_document(verdict: SweepVerdict) -> dict[str, Any]:
    """Return the verdict as JSON."""
    return {
        "targets_met": verdict.targets_met,
        "headline": verdict.headline,
        "targets": [target.text for target in verdict.targets],
        "workloads": [
            {"workload": one.workload, "baseline": one.baseline.cell_id, "targets_met": one.targets_met}
            for one in verdict.workloads
        ],
        "cells": [
            {"cell_id": one.cell.cell_id, "reached": one.reached, "because": one.because} for one in verdict.cells
        ],
    }
