"""What a later attempt of a trial goes on from: `<trial>/checkpoint/step-<n>/`, complete or not there at all.

step-<n>/checkpoint.json             what it belongs to, and the size of every file
        /state/                      model, optimizer and loss scaler, as the strategy writes them
        /rank-<r>.pt                 a rank's random generators
        /rank-<r>.jsonl              its step lines so far
        /predictions.before.jsonl    where questions were asked before training
Hidden folders beside it are being written, or being removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from egobench.records.measures import Answers
from egobench.records.outcome import OutcomeName
from egobench.records.store import read_document
from egobench.spec.strict import Record

DOCUMENT: Final = "checkpoint.json"
STATE: Final = "state"
_PREFIX: Final = "step-"
FRESH: Final[frozenset[OutcomeName]] = frozenset({"ok", "diverged"})
"""After these a trial begins anew: it is over, or it would only diverge again."""


class Origin(Record):
    """What a checkpoint belongs to; an attempt of another origin does not go on from it."""

    trial: str
    """Digest of cell, repeat and base folder; limits and intervals may change between attempts."""
    code: str
    """Digest of egobench's sources."""
    packages: dict[str, str]
    """One record holds the steps of all attempts, but names one set of versions."""
    num_ranks: int
    micro_batch_size: int
    """What `max` came to, if the matrix asked for it."""
    device: str

    def differences(self, other: Origin) -> list[str]:
        """Return what differs, by name."""
        return [name for name, value in self if value != getattr(other, name)]


class Checkpoint(Record):
    """`checkpoint.json`."""

    schema_version: Literal[1] = 1
    step: int
    """Updates made, and thus the step to go on at."""
    origin: Origin
    epoch: int
    position: int
    """Samples of this epoch that the updates made have read."""
    resumed_at: tuple[int, ...] = ()
    before: Answers | None = None
    at: float
    """Unix time, s."""
    files: dict[str, int]
    """Every other file of the folder -> bytes."""


def name_of(step: int) -> str:
    """Return the name of the checkpoint after so many updates."""
    return f"{_PREFIX}{step}"


def complete_checkpoints(folder: Path) -> Iterator[tuple[Path, Checkpoint]]:
    """Return the whole checkpoints below `<trial>/checkpoint`, newest first."""
    for path in list_checkpoints(folder):
        document = read_document(path / DOCUMENT, Checkpoint)
        if document is not None and sizes(path) == document.files:
            yield path, document


def list_checkpoints(folder: Path) -> list[Path]:
    """Return everything that has the name of a checkpoint, newest first."""
    if not folder.is_dir():
        return []
    found = (entry for entry in folder.iterdir() if entry.name.startswith(_PREFIX))
    return sorted(
        (entry for entry in found if entry.name.removeprefix(_PREFIX).isdigit()),
        key=lambda entry: -int(entry.name.removeprefix(_PREFIX)),
    )


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of every file of a checkpoint but its document."""
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / DOCUMENT)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def remove(folder: Path) -> None:
    """Remove a folder so that no part of it can pass for the whole."""
    hidden = folder.with_name(f".removed-{folder.name.lstrip('.')}")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(hidden)
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder, hidden)
        shutil.rmtree(hidden)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, not only in memory."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
