"""A copy of egobench as it is now, so that a job that waits for days runs the code that was submitted."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import egobench
from egobench.errors import EnvironmentProblem
from egobench.records.code import SNAPSHOT_NAME, code_digest, code_state, digest_files
from egobench.records.store import SweepPaths, disk_errors, write_document


def snapshot_folder(paths: SweepPaths, package: Path | None = None) -> Path:
    """Return where the snapshot of the code as it is now belongs: the folder for PYTHONPATH."""
    return paths.code / _content_digest(package or _running())


def take_snapshot(paths: SweepPaths, package: Path | None = None) -> Path:
    """Copy the package into the sweep's folder, unless that has been done, and return the folder for PYTHONPATH.

    Several may do so at once: each copies into a folder of its own, and the first to finish gives it its name.

    Raises:
        EnvironmentProblem: the disk is full or not writable.
    """
    source = package or _running()
    target = snapshot_folder(paths, source)
    if target.is_dir():
        return target
    with disk_errors(target):
        paths.code.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".copy.", dir=paths.code))
        try:
            shutil.copytree(source, scratch / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            # Digests of the copy: somebody may be editing the source right now.
            copy = scratch / source.name
            target = paths.code / _content_digest(copy)
            state = code_state(source).model_copy(update={"code_digest": code_digest(copy)})
            write_document(scratch / SNAPSHOT_NAME, state)
            scratch.chmod(0o777 & ~_umask())  # mkdtemp keeps others out, and nodes may run as somebody else
            scratch.rename(target)
        except OSError as error:
            if not target.is_dir():
                if isinstance(error, shutil.Error):
                    raise _cannot_copy(target, error) from error
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _cannot_copy(target: Path, error: shutil.Error) -> EnvironmentProblem:
    # Of all that failed copytree keeps (from, to, words), without an errno.
    reasons = error.args[0] if error.args else error
    why = reasons[0][-1] if isinstance(reasons, list) and reasons else reasons
    todo = "free some space or choose another --runs folder, then run the same command again"
    return EnvironmentProblem(f"{target}: cannot copy egobench: {why}; {todo}")


def _content_digest(package: Path) -> str:
    """Digest all files, package data too."""
    files = (path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return digest_files(package, files)[:16]


def _running() -> Path:
    return Path(egobench.__file__).parent


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
