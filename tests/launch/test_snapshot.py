"""A queued job runs the code that was submitted, whatever happens to the sources meanwhile."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import egobench
from egobench.errors import EnvironmentProblem
from egobench.launch.snapshot import take_snapshot
from egobench.records.code import code_state
from egobench.records.store import SweepPaths

PACKAGE = Path(egobench.__file__).parent


def copy_of_egobench(folder: Path) -> Path:
    return shutil.copytree(PACKAGE, folder / "egobench", ignore=shutil.ignore_patterns("__pycache__"))


def run_from(code: Path, what: str) -> str:
    command = [sys.executable, "-P", "-c", what]
    environment = os.environ | {"PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_an_edit_after_submission_changes_no_queued_job(tmp_path: Path) -> None:
    source, paths = copy_of_egobench(tmp_path / "checkout"), SweepPaths(tmp_path / "runs" / "x")
    take = (
        "from egobench.launch.snapshot import take_snapshot as t; from egobench.records.store import SweepPaths as P; "
    )
    take += f"import pathlib; print(t(P(pathlib.Path({str(paths.folder)!r}))))"
    submitted = Path(run_from(source.parent, take))
    (source / "units.py").write_text("EDITED = True\n")
    told = "import egobench.units as u; print(u.__file__, hasattr(u, 'EDITED'))"
    assert run_from(submitted, told) == f"{submitted / 'egobench' / 'units.py'} False"
    again = Path(run_from(source.parent, take))
    assert again != submitted and run_from(again, told).endswith("True")
    assert submitted.parent == again.parent == paths.code


def test_it_is_whole_and_says_what_it_is(tmp_path: Path) -> None:
    source, paths = copy_of_egobench(tmp_path / "checkout"), SweepPaths(tmp_path / "x")
    code, state = take_snapshot(paths, source), code_state(source)
    assert code.parent == paths.code
    assert code_state(code / source.name) == state
    assert json.loads((code / "code.json").read_text()) == state.model_dump(mode="json")
    for file in ("models/egotiny/model.safetensors", "report/templates/page.css", "spec/site.schema.json"):
        assert (code / "egobench" / file).read_bytes() == (PACKAGE / file).read_bytes()
    assert not list(code.rglob("__pycache__"))
    assert take_snapshot(paths, source) == code
    assert code.stat().st_mode & 0o555 == 0o555 & ~_umask()


def test_it_remembers_the_commit(tmp_path: Path) -> None:
    git_sha = code_state().git_sha
    assert git_sha is not None
    code = take_snapshot(SweepPaths(tmp_path / "x"))
    assert code_state(code / "egobench").git_sha == git_sha  # git itself does not know this folder


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_several_at_once(tmp_path: Path) -> None:
    source, paths = copy_of_egobench(tmp_path / "checkout"), SweepPaths(tmp_path / "x")
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = set(pool.map(lambda _: take_snapshot(paths, source), range(6)))
    assert len(found) == 1
    assert [entry.name for entry in paths.code.iterdir()] == [found.pop().name]


def test_a_disk_that_fills_up_meanwhile(tmp_path: Path) -> None:
    source = copy_of_egobench(tmp_path / "checkout")
    (source / "broken").symlink_to("nowhere")  # copytree fails on it as on a write: with an error of its own kind
    with pytest.raises(EnvironmentProblem, match=r"cannot copy egobench: .*No such file"):
        take_snapshot(SweepPaths(tmp_path / "x"), source)
    assert list((tmp_path / "x" / "code").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(EnvironmentProblem):
        take_snapshot(SweepPaths(tmp_path / "x"))
