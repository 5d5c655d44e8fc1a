"""Which checkpoint counts, when it goes, and what it is worth: an attempt that left one has not been in vain."""

from __future__ import annotations

from pathlib import Path

import pytest

from egobench.records.allocation import Allocation, AllocationPaths, Retry, Start, TrialRef
from egobench.records.checkpoint import (
    DOCUMENT,
    Checkpoint,
    Origin,
    complete_checkpoints,
    list_checkpoints,
    name_of,
    remove,
    sizes,
)
from egobench.records.claim import claim
from egobench.records.measures import Measures, MergedStep
from egobench.records.outcome import Outcome, OutcomeName
from egobench.records.store import SweepPaths, TrialPaths, write_document
from egobench.records.summary import summarise
from egobench.worker.start import fruitless_starts

ORIGIN = Origin(trial="t", code="c", packages={}, num_ranks=1, micro_batch_size=1, device="cpu")


def leave(trial: TrialPaths, step: int, at: float = 0.0) -> Path:
    folder = trial.checkpoints / name_of(step)
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "weights").write_bytes(b"x" * step)
    document = Checkpoint(step=step, origin=ORIGIN, epoch=0, position=0, at=at, files=sizes(folder))
    write_document(folder / DOCUMENT, document)
    return folder


def steps_of(trial: TrialPaths) -> list[int]:
    return [document.step for _, document in complete_checkpoints(trial.checkpoints)]


def measures(resumed_at: tuple[int, ...]) -> Measures:
    step = MergedStep(
        step=0, step_time_s=1, data_s=0, forward_s=1, backward_s=0, communication_s=0, optimizer_s=0, loss=1,
        grad_norm=1, learning_rate=1, num_samples=1, image_tokens=1, text_tokens=1, supervised_tokens=1,
        padding_tokens=0, peak_allocated_bytes=1,
    )  # fmt: skip
    found = summarise([step], [])
    assert found is not None
    return found.model_copy(update={"resumed_at": resumed_at})


def outcome(
    name: OutcomeName, attempt: int, resumed_at: tuple[int, ...] = (), interrupted: bool = True, at: float = 1
) -> Outcome:
    return Outcome(
        outcome=name, cell_id="c", trial=0, attempt=attempt, started_at=0, ended_at=at, interrupted=interrupted,
        measures=measures(resumed_at),
    )  # fmt: skip


def test_the_newest_whole_one_counts(tmp_path: Path) -> None:
    trial = TrialPaths(tmp_path)
    assert steps_of(trial) == []
    for step in (9, 100, 20):
        leave(trial, step)
    (trial.checkpoints / ".step-200-x").mkdir()  # being written
    (trial.checkpoints / "step-300").mkdir()  # without its document
    assert steps_of(trial) == [100, 20, 9]
    assert [path.name for path in list_checkpoints(trial.checkpoints)] == ["step-300", "step-100", "step-20", "step-9"]
    (trial.checkpoints / "step-100" / "state" / "weights").write_bytes(b"x")
    (trial.checkpoints / "step-20" / "more").write_bytes(b"x")
    assert steps_of(trial) == [9]


def test_a_removal_that_is_cut_off_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import egobench.records.checkpoint as room

    trial = TrialPaths(tmp_path)
    folder = leave(trial, 3)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(room.shutil, "rmtree", lambda path: die() if path.exists() else None)
    with pytest.raises(Killed):
        remove(folder)
    monkeypatch.undo()
    assert list_checkpoints(trial.checkpoints) == []
    leave(trial, 3)
    remove(folder)
    assert list(trial.checkpoints.iterdir()) == []


@pytest.mark.parametrize(
    ("ended", "is_kept"),
    [
        *((name, True) for name in ("preempted", "node_fail", "timeout", "crash", "oom", "hang")),
        ("ok", False),  # nothing to go on with
        ("diverged", False),  # it only would again
    ],
)
def test_what_the_next_attempt_goes_on_from(tmp_path: Path, ended: OutcomeName, is_kept: bool) -> None:
    trial = TrialPaths(tmp_path / "s" / "c" / "0")
    leave(trial, 3)
    trial.steps.write_text("")
    write_document(trial.outcome, outcome(ended, 1, interrupted=False))
    assert claim(trial, 1) == 2
    assert steps_of(trial) == ([3] if is_kept else [])
    assert not (trial.attempts / "1" / "checkpoint").exists()
    assert (trial.attempts / "1" / "steps.jsonl").exists()


def test_attempts_that_bring_the_trial_nearer_to_its_end_do_not_count() -> None:
    retry, ref = Retry(outcomes=("crash",), max_attempts=3), TrialRef(cell_id="c", trial=0)
    assert not retry.is_final(outcome("preempted", 2), ref)
    assert retry.is_final(outcome("preempted", 3), ref)
    assert not retry.is_final(outcome("preempted", 3, (40,)), ref)
    assert retry.is_final(outcome("preempted", 4, (40, 40)), ref)  # the second of them got nowhere
    assert not retry.is_final(outcome("preempted", 40, tuple(range(10, 400, 10))), ref)
    # A crash is no gain, whatever was saved before it.
    assert retry.is_final(outcome("crash", 3, (40, 80), interrupted=False), ref)
    assert retry.is_final(outcome("ok", 1, interrupted=False), ref)


def test_a_start_that_left_a_checkpoint_was_not_fruitless(tmp_path: Path) -> None:
    paths = AllocationPaths(SweepPaths(tmp_path).allocations / "1")
    allocation = Allocation(sweep="s", trials=(TrialRef(cell_id="c", trial=0),))
    starts = [Start(number=number, nodes=("n",), pid=1, at=100.0 * number) for number in range(4)]
    for start in starts:
        write_document(paths.start(start.number), start)
    assert fruitless_starts(paths, allocation, starts[3]) == 4
    leave(SweepPaths(tmp_path).trial("c", 0), 7, at=150)
    assert fruitless_starts(paths, allocation, starts[3]) == 2
    leave(SweepPaths(tmp_path).trial("c", 0), 8, at=350)
    assert fruitless_starts(paths, allocation, starts[3]) == 0
