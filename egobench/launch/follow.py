"""What a driver sees of the trials that it was asked for, told to an observer change by change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from egobench.launch.watch.progress import Observer
from egobench.launch.watch.reader import SweepReader
from egobench.launch.watch.state import SweepState, TrialState
from egobench.records.allocation import Retry, TrialRef
from egobench.records.outcome import Outcome


class Follower:
    """Looks at a sweep through its files alone, whoever runs it."""

    def __init__(self, reader: SweepReader, asked: Sequence[TrialRef], retry: Retry, observer: Observer) -> None:
        self._reader, self._asked, self._retry, self._observer = reader, asked, retry, observer
        self._states: dict[tuple[str, int], TrialState] = {}
        self._told: dict[TrialRef, tuple[str, int]] = {}
        """Trial -> what the observer heard of it last: its outcome and the attempt."""
        self._missing = list(asked)

    def look(self, again: Iterable[TrialRef] = ()) -> SweepState:
        """Look at what can have changed, and at the trials given."""
        state = self._reader.read((ref.cell_id, ref.trial) for ref in again)
        self._states = {(trial.cell.cell_id, trial.trial): trial for trial in state.trials}
        for ref in self._missing:
            self._tell(ref)
        self._missing = [ref for ref in self._missing if not self._is_done(ref)]
        running = [trial for ref in self._missing if (trial := self.state(ref)).outcome == "running"]
        self._observer.tick(running, len(self._asked) - len(self._missing), len(self._asked), state.eta_s)
        return state

    def missing(self) -> list[TrialRef]:
        """Return the trials that have no final outcome yet, as far as was seen."""
        return list(self._missing)

    def known(self, ref: TrialRef) -> Outcome | None:
        """Return the outcome record that was last seen of any trial of the plan."""
        return self.state(ref).document

    def state(self, ref: TrialRef) -> TrialState:
        """Return what was last seen of a trial of the plan."""
        return self._states[ref.cell_id, ref.trial]

    def _is_done(self, ref: TrialRef) -> bool:
        document = self.known(ref)
        return document is not None and self._retry.is_final(document, ref)

    def _tell(self, ref: TrialRef) -> None:
        trial = self.state(ref)
        if trial.outcome == "running":
            news = ("running", trial.attempt)
        elif trial.document is not None and trial.document.attempt >= ref.attempt:
            news = (trial.document.outcome, trial.document.attempt)
        else:
            return
        if self._told.get(ref) != news:
            self._told[ref] = news
            self._observer.changed(trial)
