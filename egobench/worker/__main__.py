"""`python -m egobench.worker PATH/trial.json` replays a trial; `PATH/allocation.json` runs an allocation.

`--slurm PATH/allocation.json` runs it as a Slurm job does: started by srun, once on every node.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
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
        if options.slurm:
            return _slurm_step(options)
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
    parser.add_argument("--slurm", action="store_true", help="this is a task of a Slurm step, one on each node")
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


def _slurm_step(options: argparse.Namespace) -> int:
    # Slurm warns every process of the step; what is started from here on must not die of it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    from egobench.worker.slurm import read_step

    step = read_step()
    paths = AllocationPaths(options.document.resolve().parent)
    _talk_into(paths.log)
    if not step.leads:
        _warm_up(options.body)
        from egobench.worker.follow import follow

        return follow(step, options.body)
    # For people only: a shared file system may not know locks, and an earlier start may still hold this one.
    lock = None
    with contextlib.suppress(OSError, EgobenchError):
        lock = take_lock(paths.lock)
    _warm_up(options.body)
    from egobench.worker.allocation import run_allocation

    code = run_allocation(paths.folder, options.body, step)
    del lock
    return code


def _talk_into(log: Path) -> None:
    """Send our own talk to the allocation's log, whatever file srun was told to use; all nodes append to it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)


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
    from egobench.worker.stop import Stop, Superseded
    from egobench.worker.trial import run_trial, tell
    from egobench.worker.warm import await_server

    stop = Stop()
    stop.listen()
    quiet_elastic_logging()
    await_server()
    try:
        outcome = run_trial(paths.folder, stop.this_trial, body=options.body)
    except Superseded as error:
        raise EnvironmentProblem(str(error)) from error
    if outcome is None:
        raise EnvironmentProblem(f"{paths.folder}: somebody else started it at this moment")
    tell(outcome)
    return EXIT_OK if outcome.outcome == "ok" else EXIT_TRIALS_FAILED


if __name__ == "__main__":
    sys.exit(main())
