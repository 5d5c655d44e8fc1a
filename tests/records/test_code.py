"""The state of the code: by git in a checkout, by `code.json` in a snapshot."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import egobench
from egobench.records.code import SNAPSHOT_NAME, CodeState, code_digest, code_state, git_state
from egobench.records.store import write_document


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True)


def test_commit_and_digest_of_what_is_not_committed(tmp_path: Path) -> None:
    assert git_state(tmp_path) == (None, None)
    git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    sha, dirty = git_state(tmp_path)
    assert sha is not None
    assert len(sha) == 40
    assert dirty is None
    digests = set()
    for text in ("2", "3"):
        (tmp_path / "a").write_text(text)
        digests.add(git_state(tmp_path))
    (tmp_path / "b").write_text("new")
    digests.add(git_state(tmp_path))
    assert len({digest for _, digest in digests}) == 3
    assert {commit for commit, _ in digests} == {sha}


def test_a_snapshot_keeps_its_commit(tmp_path: Path) -> None:
    package = tmp_path / "egobench"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(egobench.__file__).parent, package, ignore=ignore)
    assert code_digest(package) == code_digest()
    assert code_state(package).git_sha is None
    told = CodeState(git_sha="a" * 40, dirty_digest="d", code_digest=code_digest(), egobench="9")
    write_document(tmp_path / SNAPSHOT_NAME, told)
    assert code_state(package) == told
    (package / "more.py").write_text("edited = True")
    code_digest.cache_clear()
    edited = code_state(package)
    assert (edited.git_sha, edited.dirty_digest) == (None, None)
    assert edited.code_digest != told.code_digest


def test_no_torch() -> None:
    check = "import sys, egobench.records.code; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
