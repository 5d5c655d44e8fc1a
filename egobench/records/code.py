"""Which code ran: the commit, what was not committed, and egobench's own sources. Told by git, or by a snapshot."""

from __future__ import annotations

import functools
import hashlib
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import egobench
from egobench.records.store import read_document
from egobench.spec.strict import Record

SNAPSHOT_NAME: Final = "code.json"
"""Lies beside the package that a snapshot copied."""
_ROOT = Path(egobench.__file__).parent
_MAX_DIFF_BYTES = 64 * 2**20


class CodeState(Record):
    """`code/<digest>/code.json`: what git said about the code when it was copied there."""

    schema_version: Literal[1] = 1
    git_sha: str | None
    """None outside a git checkout."""
    dirty_digest: str | None
    """Digest of the uncommitted changes; None: clean or no checkout."""
    code_digest: str
    """Digest of egobench's own source files."""
    egobench: str
    """Its version."""


def code_state(package: Path = _ROOT) -> CodeState:
    """Describe the code of a package folder; a snapshot's own document stands in for git, which knows it not."""
    digest = code_digest(package)
    told = read_document(package.parent / SNAPSHOT_NAME, CodeState)
    if told is None:
        sha, dirty = git_state(package)
    elif told.code_digest == digest:
        return told
    else:  # somebody edited the snapshot: no commit describes it
        sha = dirty = None
    return CodeState(git_sha=sha, dirty_digest=dirty, code_digest=digest, egobench=egobench.__version__)


@functools.cache
def code_digest(package: Path = _ROOT) -> str:
    """Digest egobench's own source files: the code as it is, committed or not."""
    return digest_files(package, package.rglob("*.py"))


def digest_files(folder: Path, files: Iterable[Path]) -> str:
    """Digest names, relative to the folder, and contents."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def git_state(folder: Path) -> tuple[str | None, str | None]:
    """Return (commit, digest of what is not committed) of the checkout around a folder."""
    # One call for both: commit, branch and the changed files (untracked ones included).
    status = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=normal")
    sha = re.search(rb"^# branch\.oid ([0-9a-f]{40,64})$", status or b"", re.MULTILINE)
    if status is None or sha is None:
        return None, None
    changed = b"\n".join(line for line in status.splitlines() if not line.startswith(b"#"))
    if not changed:
        return sha.group(1).decode(), None
    diff = _git(folder, "diff", "HEAD", "--no-ext-diff", "--no-color") or b""
    return sha.group(1).decode(), hashlib.sha256(changed + b"\0" + diff[:_MAX_DIFF_BYTES]).hexdigest()


def _git(folder: Path, *arguments: str) -> bytes | None:
    try:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, timeout=10, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
