"""Leftovers move aside under the number of their attempt, also if moving is interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from egobench.records import claim as room
from egobench.records.allocation import Claim, living_claim
from egobench.records.claim import archive, claim
from egobench.records.lock import take_lock
from egobench.records.outcome import Outcome
from egobench.records.store import TrialPaths, read_document, write_document


@pytest.fixture
def paths(tmp_path: Path) -> TrialPaths:
    found = TrialPaths(tmp_path / "s" / "cell" / "0")
    found.folder.mkdir(parents=True)
    found.trial.write_text("{}")
    return found


def leave(paths: TrialPaths, text: str = "x") -> None:
    paths.ranks.mkdir()
    paths.rank_steps(0).write_text(text)


def test_first_claim(paths: TrialPaths) -> None:
    assert claim(paths, 1) == 1
    assert not paths.attempts.exists()


def test_each_attempt_keeps_its_files(paths: TrialPaths) -> None:
    for number in (1, 2, 3):
        assert claim(paths, 1) == number
        leave(paths, f"attempt {number}")
    assert paths.rank_steps(0).read_text() == "attempt 3"
    assert (paths.attempts / "2" / "ranks" / "0.jsonl").read_text() == "attempt 2"
    assert paths.trial.exists()


def test_interrupted_move_goes_on(paths: TrialPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(paths, 1)
    leave(paths)
    paths.steps.write_text("")
    outcome = Outcome(outcome="oom", cell_id="cell", trial=0, started_at=0, ended_at=1)
    write_document(paths.outcome, outcome)
    moved: list[object] = []

    class Killed(BaseException):
        pass

    def replace(source: Path, target: Path) -> None:
        if len(moved) == 2:
            raise Killed
        moved.append(source.rename(target))

    monkeypatch.setattr(room.os, "replace", replace)
    with pytest.raises(Killed):
        archive(paths)
    monkeypatch.undo()
    assert read_document(paths.outcome, Outcome) == outcome  # moved last: until then the trial has its outcome
    assert claim(paths, 2) == 2
    assert sorted(entry.name for entry in (paths.attempts / "1").iterdir()) == [
        "outcome.json", "ranks", "running.json", "steps.jsonl",
    ]  # fmt: skip


def test_a_claim_lives_as_long_as_its_allocation(paths: TrialPaths) -> None:
    lock = take_lock(paths.folder.parent.parent / "allocations" / "7" / "lock")
    assert lock is not None
    claim(paths, 7)
    assert living_claim(paths) is not None
    lock.close()
    assert living_claim(paths) is None
    assert read_document(paths.running, Claim) is not None
