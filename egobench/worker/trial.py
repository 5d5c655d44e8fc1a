"""One trial from claim to outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from egobench.errors import EnvironmentProblem
from egobench.records.outcome import Outcome
from egobench.records.store import TrialPaths, read_document
from egobench.records.trial import Trial
from egobench.worker.agent import start_ranks
from egobench.worker.claim import claim
from egobench.worker.conclude import conclude
from egobench.worker.process import count_oom_kills
from egobench.worker.rank import BODY
from egobench.worker.say import say
from egobench.worker.watch import Watch


def run_trial(folder: Path, stop: Callable[[], str | None], allocation: int | None = None, body: str = BODY) -> Outcome:
    """Run one trial in fresh processes and write its outcome.

    Raises:
        EnvironmentProblem: the machine failed, or there is no trial here; there is no outcome then.
    """
    paths = TrialPaths(folder)
    trial = read_document(paths.trial, Trial)
    if trial is None:
        raise EnvironmentProblem(f"{paths.trial}: no whole trial document; run `egobench sweep` again to write it")
    attempt = claim(paths, allocation)
    oom_kills = count_oom_kills()
    watch = Watch(trial, paths, stop)
    started_at = time.time()
    watch.start()
    try:
        exits = start_ranks(paths, trial.num_ranks, body)
    finally:
        watch.finish()
    outcome = conclude(trial, paths, attempt, started_at, watch, exits, count_oom_kills() - oom_kills)
    paths.running.unlink(missing_ok=True)
    return outcome


def tell(outcome: Outcome) -> None:
    """Write one line about a finished trial to stderr."""
    took_s = outcome.ended_at - outcome.started_at
    because = f": {outcome.because}" if outcome.because else ""
    say(f"{outcome.cell_id} trial {outcome.trial}: {outcome.outcome} in {took_s:.1f} s{because}")
