"""All paths of a sweep, and the only ways to write into it: atomic documents, append-only lines.

runs/<sweep>/sweep.json                      the resolved plan
runs/<sweep>/lock                            held by the one `egobench sweep` that drives it
runs/<sweep>/queue.json                      what Slurm said last about the jobs
runs/<sweep>/code/<digest>/                  egobench as it was when jobs were submitted
runs/<sweep>/slurm/                          sbatch scripts, and what Slurm's own processes said
runs/<sweep>/allocations/<n>/                an allocation
                           /allocation.json  what to run, in which order, on what
                           /job.json         its Slurm job, where it is one
                           /starts/<k>.json  the k-th time it began
                           /usage.json       what its GPU time went into
                           /cancel.json      somebody asks it to end
                           /again            its worker asks for another start
                           /ended.json       it is over for good, and why
                           /lock, /log.txt
runs/<sweep>/<cell>/<trial>/trial.json       what to run
                           /running.json     claim of the allocation that runs it now
                           /interrupted.json that allocation was told to end
                           /outcome.json     how it ended
                           /steps.jsonl      one line per update, all ranks
                           /ranks/<r>.jsonl  one line per update of one rank
                           /ranks/<r>.json   what the rank said last: its summary or its failure
                           /ranks/<r>.pulse  where the rank is right now (memory-mapped)
                           /provenance.json  code, packages, hardware
                           /predictions.{before,after}.jsonl
                           /log/<r>.{out,err}
                           /checkpoint/step-<n>/  what a later attempt goes on from (`records/checkpoint.py`)
                           /save             the ranks are to save now; gone when they have
                           /model/           the trained model, where `save: {export: ...}` asks for it
                           /profile/         traces of the steps that `profile:` chose, or how to run them under nsys
                           /attempts/<k>/    what an earlier, interrupted attempt left
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from egobench.errors import EnvironmentProblem

AGAIN = "again"
"""In an allocation's folder: its worker has left with EXIT_AGAIN, whatever srun makes of that."""
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class TrialPaths:
    """Every path of one trial."""

    folder: Path

    @property
    def trial(self) -> Path:
        return self.folder / "trial.json"

    @property
    def running(self) -> Path:
        return self.folder / "running.json"

    @property
    def interrupted(self) -> Path:
        return self.folder / "interrupted.json"

    @property
    def outcome(self) -> Path:
        return self.folder / "outcome.json"

    @property
    def steps(self) -> Path:
        return self.folder / "steps.jsonl"

    @property
    def provenance(self) -> Path:
        return self.folder / "provenance.json"

    @property
    def attempts(self) -> Path:
        return self.folder / "attempts"

    @property
    def ranks(self) -> Path:
        return self.folder / "ranks"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def save_request(self) -> Path:
        return self.folder / "save"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def profile(self) -> Path:
        return self.folder / "profile"

    def rank_steps(self, rank: int) -> Path:
        return self.ranks / f"{rank}.jsonl"

    def rank_report(self, rank: int) -> Path:
        return self.ranks / f"{rank}.json"

    def rank_pulse(self, rank: int) -> Path:
        return self.ranks / f"{rank}.pulse"

    def rank_log(self, rank: int, stream: str = "err") -> Path:
        return self.log / f"{rank}.{stream}"

    def predictions(self, when: str) -> Path:
        return self.folder / f"predictions.{when}.jsonl"


@dataclass(frozen=True)
class SweepPaths:
    """Every path of one sweep."""

    folder: Path

    @property
    def sweep(self) -> Path:
        return self.folder / "sweep.json"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def queue(self) -> Path:
        return self.folder / "queue.json"

    @property
    def code(self) -> Path:
        return self.folder / "code"

    @property
    def slurm(self) -> Path:
        return self.folder / "slurm"

    @property
    def allocations(self) -> Path:
        return self.folder / "allocations"

    def trial(self, cell_id: str, trial: int) -> TrialPaths:
        return TrialPaths(self.folder / cell_id / str(trial))


FULL_BYTES: Final = 64 * 1024
"""With less free than this, documents no longer fit."""


def is_full(folder: Path) -> bool:
    """Return whether the disk has no room for documents."""
    return shutil.disk_usage(folder).free < FULL_BYTES


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into an `EnvironmentProblem` that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise EnvironmentProblem(
                f"{path}: cannot write: {os.strerror(error.errno)}; "
                "free some space or choose another --runs folder, then run the same command again"
            ) from error
        raise


def write_document(path: Path, document: BaseModel | dict[str, Any]) -> None:
    """Write a JSON document so that a reader sees the old one or the whole new one, never a part.

    Raises:
        EnvironmentProblem: the disk is full or not writable; nothing is left behind.
    """
    write_text(path, _text(document))


def create_document(path: Path, document: BaseModel) -> bool:
    """Write a document that nobody may have written before; False, and nothing changed, where somebody has.

    Raises:
        EnvironmentProblem: the disk is full or not writable; nothing is left behind.
    """
    scratch = _scratch(path)
    with disk_errors(path):
        try:
            _write_through(scratch, _text(document))
            os.link(scratch, path)  # atomic, and exclusive, on NFS too
        except FileExistsError:
            return False
        finally:
            scratch.unlink(missing_ok=True)
    return True


def _text(document: BaseModel | dict[str, Any]) -> str:
    data = document.model_dump(mode="json") if isinstance(document, BaseModel) else document
    return json.dumps(data, indent=1, sort_keys=False, allow_nan=True) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically."""
    scratch = _scratch(path)
    with disk_errors(path):
        try:
            _write_through(scratch, text)
            os.replace(scratch, path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def _scratch(path: Path) -> Path:
    # Two nodes can have the same pid.
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}")


def _write_through(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def read_document(path: Path, model: type[Model]) -> Model | None:
    """Read a document; None where there is none, or none that is whole.

    Raises:
        EnvironmentProblem: the file system does not answer; look again later.
    """
    try:
        return model.model_validate_json(_read(path))
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def _read(path: Path) -> bytes:
    try:
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return path.read_bytes()  # NFS: it was replaced between open and read
    except OSError as error:
        if error.errno in (errno.EIO, errno.ETIMEDOUT, errno.ESTALE):
            words = os.strerror(error.errno)
            raise EnvironmentProblem(f"{path}: cannot read: {words}; is the shared file system in trouble?") from error
        raise


def append_line(path: Path, record: BaseModel | dict[str, Any]) -> None:
    """Append one JSON line."""
    data = record.model_dump(mode="json") if isinstance(record, BaseModel) else record
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(data) + "\n")


def read_lines(path: Path, model: type[Model]) -> list[Model]:
    """Read all whole lines; a half-written last line is not a line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]
    return [model.model_validate_json(line) for line in whole.splitlines() if line.strip()]
