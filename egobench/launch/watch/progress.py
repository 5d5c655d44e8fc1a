"""What `egobench sweep` says while it waits: a live display on a terminal, one line per change of state elsewhere."""

from __future__ import annotations

import sys
import time
from typing import IO, Final, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from egobench.launch.watch.state import TrialState
from egobench.records.outcome import UNFINISHED
from egobench.units import format_seconds

MOST_LINES: Final = 12
"""Running trials shown with a line of their own."""


class Observer(Protocol):
    """Hears about every change of state."""

    def say(self, text: str) -> None:
        """Tell something that is no change of state."""

    def changed(self, trial: TrialState) -> None:
        """Take a trial that started or ended."""

    def tick(self, running: list[TrialState], num_done: int, num_all: int, eta_s: float | None) -> None:
        """Take where things stand now; called several times a second."""

    def close(self) -> None:
        """Leave the screen in order."""


def observer_for(stream: IO[str]) -> Observer:
    """Return the display that fits the stream."""
    return LiveProgress(stream) if stream.isatty() else PlainProgress(stream)


class FirstFailures:
    """Remembers which kinds of failure have been shown with their log."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def lines(self, trial: TrialState) -> list[str]:
        """Return what to say about a trial that ended; more for the first failure of each kind."""
        document = trial.document
        if document is None:
            because = f": {trial.because}" if trial.because else ""
            return [f"{trial.cell.cell_id} trial {trial.trial}: {trial.outcome}{because}"]
        took = format_seconds(document.ended_at - document.started_at)
        head = f"{trial.cell.cell_id} trial {trial.trial}: {document.outcome} after {took}"
        if document.outcome == "ok":
            return [head]
        lines = [f"{head}: {document.because}"]
        if document.outcome not in self._seen and document.outcome != "parent_failed":  # which was never launched
            self._seen.add(document.outcome)
            rank = document.failure.rank if document.failure else 0
            lines.append(f"  first {document.outcome}; its log: {trial.paths.rank_log(rank)}")
        return lines


class PlainProgress:
    """One line per change of state."""

    def __init__(self, stream: IO[str] = sys.stderr) -> None:
        self._stream, self._failures = stream, FirstFailures()

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def changed(self, trial: TrialState) -> None:
        for line in self._failures.lines(trial):
            self.say(line)

    def tick(self, running: list[TrialState], num_done: int, num_all: int, eta_s: float | None) -> None:
        pass

    def close(self) -> None:
        pass


class LiveProgress:
    """A bar of trials, the running trial's step, the time left; lines of ended trials scroll above it."""

    def __init__(self, stream: IO[str] = sys.stderr) -> None:
        self._failures = FirstFailures()
        self._bar = Progress(TextColumn("trials"), BarColumn(), MofNCompleteColumn())
        self._task = self._bar.add_task("trials", total=None)
        self._live = Live(console=Console(file=stream), refresh_per_second=4, transient=True)
        self._live.start()

    def say(self, text: str) -> None:
        self._live.console.print(Text(text))

    def changed(self, trial: TrialState) -> None:
        if trial.outcome not in UNFINISHED:
            for line in self._failures.lines(trial):
                self.say(line)

    def tick(self, running: list[TrialState], num_done: int, num_all: int, eta_s: float | None) -> None:
        self._bar.update(self._task, completed=num_done, total=num_all)
        lines = [Text(describe_running(trial, time.time())) for trial in running[:MOST_LINES]]
        if len(running) > MOST_LINES:
            lines.append(Text(f"and {len(running) - MOST_LINES} more run"))
        if eta_s is not None and num_done < num_all:
            lines.append(Text(f"about {format_seconds(eta_s)} left"))
        self._live.update(Group(self._bar, *lines))

    def close(self) -> None:
        self._live.stop()


def describe_running(trial: TrialState, now: float) -> str:
    """Return where a running trial is: its step, its phase and how long it has run."""
    parts = [f"{trial.cell.cell_id} trial {trial.trial}"]
    if trial.pulses:
        behind = min(trial.pulses, key=lambda pulse: pulse.step)
        of = f"/{trial.num_steps}" if trial.num_steps else ""
        # Steps are counted from 0 in files, from 1 for people.
        parts.append(f"step {behind.step + 1}{of} ({behind.phase})" if behind.step >= 0 else behind.phase)
    else:
        parts.append("starting")
    if trial.since is not None:
        parts.append(f"for {format_seconds(max(0.0, now - trial.since))}")
    return ", ".join(parts)
