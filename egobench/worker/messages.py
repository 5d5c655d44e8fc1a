"""What the nodes of an allocation tell each other, as JSON through the team's store."""

from __future__ import annotations

from egobench.probes.pulse import PulseReading
from egobench.records.rank import RankReport
from egobench.spec.strict import Record
from egobench.worker.process import Usage


class Order(Record):
    """From the first node: run your ranks of this trial, or go home."""

    folder: str | None
    """The trial; None: there is nothing more to do."""
    num_nodes: int = 1
    num_ranks: int = 1
    port: int = 0
    """Where the ranks meet, on the first node."""


class Sighting(Record):
    """From another node, several times a second: how its ranks fare. Times are by its own clock."""

    pulses: dict[int, PulseReading]
    usages: dict[int, Usage]
    """By pid."""
    deaths: dict[int, float]
    signal: str | None = None
    """The node was told to end."""


class Farewell(Record):
    """From another node, when no process of the trial is left there."""

    last: Sighting
    reports: tuple[RankReport, ...]
    exit_codes: dict[int, int]
    """Of ranks that failed by themselves, before anybody ended them."""
    oom_kills: int
    line_bytes: dict[int, int]
    """Rank -> size of its step lines, so that the first node can tell whether it sees all of them yet."""
    log_tails: dict[int, str]
    """Of the ranks, where something went wrong."""
    problem: str = ""
    """The machine failed, not the trial."""
