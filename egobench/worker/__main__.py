"""`python -m egobench.worker PATH/trial.json` replays a trial; `PATH/allocation.json` runs an allocation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from egobench.errors import EXIT_INVALID_INPUT, EXIT_OK, EXIT_TRIALS_FAILED, EgobenchError, EnvironmentProblem
from egobench.records.allocation import AllocationPaths, living_claim
from egobench.records.lock import read_holder, take_lock
from egobench.records.store import TrialPaths
from egobench.worker.process import adopt_orphans
from egobench.worker.say import say
from egobench.worker.warm import PRELOAD, start_server

LOOP = "egobench.train.loop:run"


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code."""
    options = _parse(arguments)
    try:
        if options.document.name == "allocation.json":
            return _allocation(options)
        return _replay(options)
    except EgobenchError as error:
        say(error)
        return error.exit_code


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m egobench.worker", description=__doc__)
    parser.add_argument("document", type=Path, help="a trial.json or an allocation.json")
    parser.add_argument("--again", action="store_true", help="run a trial that has an outcome once more")
    # A launcher that took the allocation's lock itself hands its descriptor over.
    parser.add_argument("--lock-descriptor", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--body", default=LOOP, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _warm_up(body: str) -> None:
    adopt_orphans()
    start_server(PRELOAD if body == LOOP else ("torch", "torch.distributed", body.partition(":")[0]))


def _allocation(options: argparse.Namespace) -> int:
    from egobench.worker.allocation import run_allocation

    folder = options.document.resolve().parent
    if options.lock_descriptor is None:
        lock = AllocationPaths(folder).lock
        if take_lock(lock, wait_s=1.0) is None:
            raise EnvironmentProblem(f"{folder}: this allocation runs already; held by {read_holder(lock)}")
    _warm_up(options.body)
    return run_allocation(folder, options.body)


def _replay(options: argparse.Namespace) -> int:
    paths = TrialPaths(options.document.resolve().parent)
    if not options.document.is_file():
        say(f"{options.document}: no such file; give the trial.json of a trial folder")
        return EXIT_INVALID_INPUT
    if paths.outcome.exists() and not options.again:
        say(f"{paths.outcome}: the trial has an outcome; --again runs it once more and keeps it")
        return EXIT_INVALID_INPUT
    if (claim := living_claim(paths)) is not None:
        raise EnvironmentProblem(f"{paths.folder}: runs right now (pid {claim.pid} on {claim.host}); wait or cancel it")
    _warm_up(options.body)
    from egobench.worker.agent import quiet_elastic_logging
    from egobench.worker.allocation import Stop
    from egobench.worker.trial import run_trial, tell
    from egobench.worker.warm import await_server

    stop = Stop()
    stop.listen()
    quiet_elastic_logging()
    await_server()
    outcome = run_trial(paths.folder, stop.this_trial, body=options.body)
    tell(outcome)
    return EXIT_OK if outcome.outcome == "ok" else EXIT_TRIALS_FAILED


if __name__ == "__main__":
    sys.exit(main())
