"""Counts over a plan: the ledger, what was dropped for which reason, and what the cluster is asked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from egobench.plan.finders import Mark
from egobench.records.outcome import OUTCOMES
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


@dataclass(frozen=True)
class Tally:
    """A plan in numbers."""

    ledger: dict[str, int]
    """Count per outcome, and `planned`, their sum."""
    dropped: dict[str, int]
    """Reason -> points, most frequent first."""
    requests: tuple[Request, ...]
    waiting: dict[int, int]
    """Entry of `depends:` -> cells that run and wait by it."""


def tally(counts: Mapping[Mark, int], site: Site, trials: int) -> Tally:
    """Sum up the marks of a plan."""
    ledger: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
    dropped: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    waiting: Counter[int] = Counter()
    for mark, count in counts.items():
        ledger["incompatible" if mark.because else "pending"] += count
        if mark.because:
            dropped[mark.because] += count
        else:
            sizes[mark.gpus] += count
            if mark.wait is not None and mark.wait.entry is not None:
                waiting[mark.wait.entry] += count
    requests = tuple(_request(gpus, sizes[gpus], site, trials) for gpus in sorted(sizes))
    return Tally(
        {"planned": sum(ledger.values()), **ledger},
        dict(dropped.most_common()),
        requests,
        dict(sorted(waiting.items())),
    )


def _request(gpus: int, num_cells: int, site: Site, trials: int) -> Request:
    hours = num_cells * trials * gpus * site.trial_time_limit_s / 3600
    price = site.cost_per_gpu_hour if site.device == "cuda" else None
    return Request(
        nodes=math.ceil(gpus / site.gpus_per_node),
        gpus_per_node=min(gpus, site.gpus_per_node),
        num_cells=num_cells,
        num_trials=num_cells * trials,
        gpu_hours_at_most=round(hours, 3),
        cost_at_most=None if price is None else round(hours * price, 2),
    )
