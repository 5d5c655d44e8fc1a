"""A trial's folder before and after: claim it, and move aside what an earlier attempt left."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Final

from egobench.records.allocation import AllocationPaths, Claim, last_start, living_claim
from egobench.records.checkpoint import FRESH, remove
from egobench.records.interruption import record_interruption
from egobench.records.outcome import Outcome
from egobench.records.store import TrialPaths, create_document, disk_errors, read_document

VANISHED: Final = "its allocation vanished"
_STAYS: Final = frozenset({"trial.json", "attempts", "checkpoint"})


def attempt_of_leftovers(paths: TrialPaths) -> int | None:
    """Return the number of the attempt whose files lie in the folder; None where there are none."""
    if (outcome := read_document(paths.outcome, Outcome)) is not None:
        return outcome.attempt
    if (claim := read_document(paths.running, Claim)) is not None:
        return claim.attempt
    return _last_archived(paths) + 1 if _leftovers(paths) else None


def next_attempt(paths: TrialPaths) -> int:
    """Return the number that the next launch of the trial has."""
    return max(_last_archived(paths), attempt_of_leftovers(paths) or 0) + 1


def claim(paths: TrialPaths, allocation: int | None, start: int = 0) -> int | None:
    """Move leftovers to `attempts/<k>/`, say in `running.json` that the trial is ours, and return our attempt's number.

    None, and nothing changed, where another allocation runs the trial right now.

    Raises:
        EnvironmentProblem: the disk is full.
    """
    held = living_claim(paths)
    if held is not None and not _is_ours(held, paths, allocation, start):
        return None
    settle_vanished(paths)
    attempt = next_attempt(paths)
    archive(paths)
    ours = Claim(
        allocation=allocation,
        start=start,
        attempt=attempt,
        host=socket.gethostname(),
        pid=os.getpid(),
        since=time.time(),
    )
    # Exclusive: of two that come at the same moment, one gets it.
    return attempt if create_document(paths.running, ours) else None


def _is_ours(held: Claim, paths: TrialPaths, allocation: int | None, start: int) -> bool:
    """Return whether the claim is what an earlier launch of ours left."""
    if held.allocation != allocation or allocation is None:
        return False
    number = last_start(AllocationPaths(paths.folder.parent.parent / "allocations" / str(allocation)))
    return (number or 0) <= start


def is_held_by(paths: TrialPaths, allocation: int | None, start: int, attempt: int) -> bool:
    """Return whether the trial is still that launch's own: nobody claimed it since."""
    look_afresh(paths.folder, touch=True)
    held = read_document(paths.running, Claim)
    return held is not None and (held.allocation, held.start, held.attempt) == (allocation, start, attempt)


def look_afresh(*folders: Path, touch: bool = False) -> None:
    """Have the next look at these folders see what other machines did: NFS remembers a folder for up to a minute.

    Args:
        folders: Where there may be news.
        touch: Leave nothing to chance: a write asks the server whatever the mount's options are.
    """
    for folder in folders:
        with contextlib.suppress(OSError):
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))  # close-to-open consistency; nfs(5)
            if touch:
                os.utime(folder)


def settle_vanished(paths: TrialPaths) -> None:
    """Give an attempt that ended without an outcome the one it has: the process that ran it is gone."""
    held = read_document(paths.running, Claim)
    if held is not None and not paths.outcome.exists():
        record_interruption(paths, held, "node_fail", VANISHED)


def archive(paths: TrialPaths) -> None:
    """Move everything but the trial itself to `attempts/<k>/`; done again after an interruption, it goes on.

    A checkpoint stays, for the next attempt to go on from, unless that one is to begin anew.
    """
    number = attempt_of_leftovers(paths)
    if number is None:
        return
    outcome = read_document(paths.outcome, Outcome)
    if outcome is not None and outcome.outcome in FRESH:
        remove(paths.checkpoints)
    target = paths.attempts / str(number)
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        # The documents that tell the number go last.
        last = (paths.running.name, paths.outcome.name)
        for entry in sorted(_leftovers(paths), key=lambda entry: (entry.name in last, entry.name == last[1])):
            os.replace(entry, target / entry.name)


def _leftovers(paths: TrialPaths) -> list[Path]:
    if not paths.folder.is_dir():
        return []
    # Hidden files are documents that somebody was writing when he was killed, or is writing now.
    found = (entry for entry in paths.folder.iterdir() if not entry.name.startswith("."))
    return [entry for entry in found if entry.name not in _STAYS]


def _last_archived(paths: TrialPaths) -> int:
    if not paths.attempts.is_dir():
        return 0
    return max((int(entry.name) for entry in paths.attempts.iterdir() if entry.name.isdigit()), default=0)
