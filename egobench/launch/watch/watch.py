"""`egobench status --watch`: a live page on a terminal, one line per change elsewhere, until nothing is under way."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from egobench.launch.watch.jobs import job_lines
from egobench.launch.watch.progress import PlainProgress
from egobench.launch.watch.reader import SweepReader
from egobench.launch.watch.state import SweepState
from egobench.launch.watch.tables import (
    cell_table,
    folded_lines,
    head_lines,
    print_status,
    running_lines,
    shown_cells,
    tail_lines,
)
from egobench.records.lock import is_held
from egobench.records.outcome import OutcomeName

LOOK_EVERY_S: Final = 1.0
SLOW: Final = 4
"""A look that takes long, on a slow file system, is followed by a pause so many times as long."""
LONGEST_PAUSE_S: Final = 10.0


def watch(reader: SweepReader, console: Console) -> None:
    """Show a sweep until nothing of it waits or runs, then how it stands."""
    state = (_watch_live if console.is_terminal else _watch_lines)(reader, console)
    print_status(state, console)


def _looks(reader: SweepReader) -> Iterator[SweepState]:
    """Yield look after look; the last one finds nothing under way."""
    while True:
        began_s = time.monotonic()
        # First: a driver that gives the lock back between the two has started nothing since.
        is_driven = is_held(reader.paths.lock)
        state = reader.read()
        yield state
        if not state.allocations and not is_driven:
            return
        time.sleep(min(LONGEST_PAUSE_S, max(LOOK_EVERY_S, SLOW * (time.monotonic() - began_s))))


def _watch_live(reader: SweepReader, console: Console) -> SweepState:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for state in _looks(reader):
            live.update(live_page(state, console.height), refresh=True)
    return state


def live_page(state: SweepState, height: int) -> Group:
    """Return what fits a terminal of so many lines."""
    head = [Text(line) for line in head_lines(state)]
    room = max(6, height - len(head) - 5)
    running = [Text(line) for line in running_lines(state, room // 2)]
    cells = shown_cells(state, max(3, room - len(running)))
    tail = [Text(line) for line in (*folded_lines(state, cells), *tail_lines(state))]
    table = [cell_table(state, cells)] if cells else []
    return Group(*head, *table, *running, *tail)


def _watch_lines(reader: SweepReader, console: Console) -> SweepState:
    lines = PlainProgress(sys.stdout)
    seen: dict[tuple[str, int], tuple[OutcomeName, int]] = {}
    jobs: list[str] = []
    for state in _looks(reader):
        if not seen:
            lines.say(next(iter(head_lines(state))))
        if (now := list(job_lines(state))) != jobs:
            jobs = now
            for line in jobs:
                lines.say(line)
        for trial in state.trials:
            key, stands = (trial.cell.cell_id, trial.trial), (trial.outcome, trial.attempt)
            if seen and seen.get(key) != stands:
                lines.changed(trial)
            seen[key] = stands
    return state
