"""From a log of storages to the largest moment of every phase, and what it consists of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, Literal

from egobench.records.trace import TracedPhase
from egobench.trace.storages import Log

PhaseName = Literal["loss", "backward", "optimizer"]
PHASES: Final[dict[str, PhaseName]] = {
    "forward": "loss", "backward": "backward", "communication": "backward", "optimizer": "optimizer",
}  # fmt: skip
"""Phase of a step -> phase of a prediction."""
LABELS: Final = ("parameters", "gradients", "optimizer", "activations", "other")


def phases_of(log: Log) -> tuple[TracedPhase, ...]:
    """Return the largest moments after the mark `measured`, as they are in any update but the first.

    What is there at the end was there all along: the first update makes the optimizer's states, and they stay.
    """
    labels = _labels(log)
    largest: dict[PhaseName, tuple[int, Counter[str]]] = {}
    for name, now in _moments(log, labels):
        if name in PHASES:
            phase, total = PHASES[name], now.total()
            if phase not in largest or total > largest[phase][0]:
                largest[phase] = (total, now.copy())
    return tuple(
        TracedPhase(name=name, **{f"{label}_bytes": parts[label] for label in LABELS})
        for name, (_, parts) in largest.items()
    )


def held_bytes(log: Log) -> int:
    """Return what is there at the end."""
    return sum(change for _, change in log.events)


def _moments(log: Log, labels: dict[int, str]) -> Iterator[tuple[str, Counter[str]]]:
    """Yield (phase, bytes by label) at the local maxima of what is measured; the same counter every time."""
    start = max(at for at, name in log.marks if name == "measured")
    marks = [(at, name) for at, name in log.marks if at >= start] + [(len(log.events) + 1, "")]
    kept = _kept(log)
    now: Counter[str] = Counter({label: 0 for label in LABELS})
    for serial, size in kept.items():
        now[labels[serial]] += size
    name, upcoming, rises = "", 0, False
    for at, (serial, change) in enumerate(log.events):
        while marks[upcoming][0] <= at:
            yield name, now
            name, upcoming, rises = marks[upcoming][1], upcoming + 1, True
        if serial in kept:
            continue
        if change < 0 and rises:
            yield name, now
        rises = change >= 0
        now[labels[serial]] += change
    yield name, now


def _kept(log: Log) -> dict[int, int]:
    """Return the storages that are there at the end, with their bytes."""
    sizes: Counter[int] = Counter()
    for serial, change in log.events:
        sizes[serial] += change
    return {serial: size for serial, size in sizes.items() if size}


def _labels(log: Log) -> dict[int, str]:
    """Return what every storage is: what it was said to be, or an activation if a forward pass made it."""
    found: dict[int, str] = {}
    marks, name, upcoming = log.marks, "", 0
    for at, (serial, _) in enumerate(log.events):
        while upcoming < len(marks) and marks[upcoming][0] <= at:
            name, upcoming = marks[upcoming][1], upcoming + 1
        if serial not in found:
            found[serial] = log.labels.get(serial) or ("activations" if name == "forward" else "other")
    return found
