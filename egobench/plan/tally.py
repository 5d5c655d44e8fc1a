"""Counts over a plan: the ledger, what was dropped for which reason, and what the cluster is asked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from egobench.plan.finders import Mark
from egobench.records.outcome import OUTCOMES
from egobench.records.predicted import VERDICTS, VerdictName
from egobench.spec.site import Site


@dataclass(frozen=True)
class Request:
    """One resource class: what the trials of equally large cells ask of the cluster together."""

    nodes: int
    gpus_per_node: int
    num_cells: int
    num_trials: int
    gpu_hours_at_most: float
    """If every trial ran into its time limit; ranks instead of GPUs on a CPU site."""
    cost_at_most: float | None
    """None: the site names no price, or has no GPUs."""
    predicted_gpu_hours: float | None = None
    """Of the cells whose time is predicted; None: of none it is."""
    predicted_cost: float | None = None


@dataclass(frozen=True)
class Outlook:
    """What is predicted of all cells together."""

    verdicts: dict[VerdictName, int]
    """Count of cells per verdict."""
    predicted_gpu_hours: float
    """Of the cells that run and whose time is predicted."""
    predicted_cost: float | None
    num_timed: int
    """How many these are."""
    num_too_long: int
    """How many of them are predicted to run into the site's limit of a trial."""
    no_verdict: dict[str, int]
    """Reason -> cells that run without any prediction."""
    no_time: dict[str, int]
    """Reason -> cells that run with a prediction of memory alone."""
    assumed: tuple[str, ...]
    """What was taken for granted."""
    constants: tuple[str, ...]
    """Which constants the predictions were made with."""


@dataclass(frozen=True)
class Tally:
    """A plan in numbers."""

    ledger: dict[str, int]
    """Count per outcome, and `planned`, their sum."""
    dropped: dict[str, int]
    """Reason -> incompatible points, most frequent first."""
    requests: tuple[Request, ...]
    waiting: dict[int, int]
    """Entry of `depends:` -> cells that run and wait by it."""
    outlook: Outlook


def tally(counts: Mapping[Mark, int], site: Site, trials: int) -> Tally:
    """Sum up the marks of a plan."""
    ledger: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
    dropped: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    hours: dict[int, float] = {}
    waiting: Counter[int] = Counter()
    for mark, count in counts.items():
        ledger[mark.outcome] += count
        if mark.outcome == "incompatible":
            dropped[mark.because] += count
        if mark.runs:
            sizes[mark.gpus] += count
            if mark.trial_s is not None:
                hours[mark.gpus] = hours.get(mark.gpus, 0.0) + count * trials * mark.gpus * mark.trial_s / 3600
            if mark.wait is not None and mark.wait.entry is not None:
                waiting[mark.wait.entry] += count
    requests = tuple(_request(gpus, sizes[gpus], site, trials, hours.get(gpus)) for gpus in sorted(sizes))
    return Tally(
        {"planned": sum(ledger.values()), **ledger},
        dict(dropped.most_common()),
        requests,
        dict(sorted(waiting.items())),
        _outlook(counts, site, sum(hours.values())),
    )


def _outlook(counts: Mapping[Mark, int], site: Site, hours: float) -> Outlook:
    verdicts: dict[VerdictName, int] = dict.fromkeys(VERDICTS, 0)
    no_verdict: Counter[str] = Counter()
    no_time: Counter[str] = Counter()
    num_timed, num_too_long, assumed, constants = 0, 0, dict[str, None](), dict[str, None]()
    for mark, count in counts.items():
        if mark.forecast is None:
            continue
        found = mark.forecast
        if found.verdict is None:
            no_verdict[found.because] += count
            continue
        verdicts[found.verdict] += count
        if mark.trial_s is not None and mark.runs:
            num_timed += count
            num_too_long += count if mark.trial_s > site.trial_time_limit_s else 0
        if found.no_time and mark.runs:
            no_time[found.no_time] += count
        assumed |= dict.fromkeys([found.assumed] if found.assumed else [])
        constants |= dict.fromkeys([found.constants] if found.constants else [])
    return Outlook(
        verdicts, round(hours, 3), cost_of(hours, site), num_timed, num_too_long,
        dict(no_verdict.most_common()), dict(no_time.most_common()), tuple(assumed), tuple(constants),
    )  # fmt: skip


def cost_of(gpu_hours: float, site: Site) -> float | None:
    """Return what GPU-hours cost, None where the site names no price or has no GPUs."""
    price = site.cost_per_gpu_hour if site.device == "cuda" else None
    return None if price is None else round(gpu_hours * price, 2)


def _request(gpus: int, num_cells: int, site: Site, trials: int, predicted_hours: float | None) -> Request:
    hours = num_cells * trials * gpus * site.trial_time_limit_s / 3600
    return Request(
        nodes=math.ceil(gpus / site.gpus_per_node),
        gpus_per_node=min(gpus, site.gpus_per_node),
        num_cells=num_cells,
        num_trials=num_cells * trials,
        gpu_hours_at_most=round(hours, 3),
        cost_at_most=cost_of(hours, site),
        predicted_gpu_hours=None if predicted_hours is None else round(predicted_hours, 3),
        predicted_cost=None if predicted_hours is None else cost_of(predicted_hours, site),
    )
