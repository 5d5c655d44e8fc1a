"""`logs -f` and `status --watch`: what a person sees while trials come, go and are run again."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from egobench.errors import InvalidInput
from egobench.launch.watch import logs, watch
from egobench.launch.watch.command import logs_command, status_command
from egobench.launch.watch.logs import LogReader
from egobench.launch.watch.reader import SweepReader
from egobench.launch.watch.tables import make_console
from egobench.records.allocation import Ended
from egobench.records.queue import JobState
from egobench.records.store import SweepPaths, TrialPaths
from tests.launch import made_up
from tests.launch.made_up import NOW, job_state, write_allocation, write_claim, write_outcome, write_queue

CELLS = [made_up.make_cell(number).cell_id for number in range(4)]


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return made_up.write_sweep(tmp_path / "runs" / "made")


def say(paths: TrialPaths, text: str, rank: int = 0, stream: str = "out") -> None:
    paths.log.mkdir(parents=True, exist_ok=True)
    with paths.rank_log(rank, stream).open("a") as file:
        file.write(text)


def archive(paths: TrialPaths, attempt: int) -> None:
    """Move an attempt aside as the worker does."""
    target = paths.attempts / str(attempt)
    target.mkdir(parents=True)
    for name in ("log", "outcome.json", "running.json"):
        if (paths.folder / name).exists():
            shutil.move(paths.folder / name, target / name)


def test_ranks_are_merged_and_half_lines_wait(paths: SweepPaths) -> None:
    trial = paths.trial(CELLS[0], 0)
    reader = LogReader(trial)
    say(trial, "one\ntw")
    say(trial, "bad\n", rank=10, stream="err")
    assert list(reader.new_lines()) == ["[0] one", "[10!] bad"]
    say(trial, "o\n")
    assert list(reader.new_lines()) == ["[0] two"]
    say(trial, "end")
    assert list(reader.new_lines()) == []
    assert list(reader.new_lines(is_last=True)) == ["[0] end"]


def test_a_log_that_is_moved_aside_is_read_to_its_end(paths: SweepPaths) -> None:
    trial = paths.trial(CELLS[0], 0)
    reader = LogReader(trial)
    say(trial, "one\n")
    assert list(reader.new_lines()) == ["[0] one"]
    say(trial, "last words")
    archive(trial, 1)
    say(trial, "again\n")
    assert list(reader.new_lines()) == ["[0] last words", "[0] again"]


def test_following_from_pending_through_two_attempts(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    trial = paths.trial(CELLS[0], 0)
    write_allocation(paths, 1, [(CELLS[0], 0)])
    write_queue(paths, job_state(1, "PENDING"), asked_at=time.time())

    def happen() -> None:
        made_up.write_allocation(paths, 1, [(CELLS[0], 0)], began_at=[NOW])
        write_claim(paths, CELLS[0], 0, 1)
        say(trial, "first\n")
        yield_("running in allocation 1, attempt 1")
        say(trial, "more\n")
        write_outcome(paths, CELLS[0], 0, "preempted", interrupted=True)
        yield_("attempt 1: preempted")
        archive(trial, 1)
        made_up.write_allocation(paths, 1, [(CELLS[0], 0)], began_at=[NOW, NOW])
        write_claim(paths, CELLS[0], 0, 1, start=1, attempt=2)
        say(trial, "second\n")
        yield_("attempt 2")
        say(trial, "done")
        write_outcome(paths, CELLS[0], 0, "ok", attempt=2)

    said: list[str] = []

    def yield_(text: str) -> None:
        wait_for(lambda: text in "".join(said))

    thread = threading.Thread(target=happen)
    reader = SweepReader(paths.folder)
    lines = []
    for is_log, line in logs.follow_trial(reader, CELLS[0], 0, look_every_s=0.02, state_every_s=0.05):
        (lines if is_log else said).append(line)
        if not thread.ident:
            thread.start()
    thread.join()
    assert lines == ["[0] first", "[0] more", "[0] second", "[0] done"]
    assert said[0] == "trial 0: pending; it waits in allocation 1"
    assert said[-1] == "trial 0: ok"


def wait_for(is_so: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_following_ends_where_nothing_is_to_run_the_trial(
    paths: SweepPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert logs_command(CELLS[0], following=True, sweep=str(paths.folder)) == 0
    assert "trial 0: pending; nothing is to run it now" in capsys.readouterr().err


def test_log_of_an_allocation(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    """Its worker's and Slurm's: for trials that never got as far as a log of their own."""
    files = write_allocation(paths, 1, [(CELLS[0], 0)], ended=Ended(exit_code=1, at=NOW))
    assert logs_command(allocation=1, sweep=str(paths.folder)) == 0
    assert "has said nothing yet" in capsys.readouterr().err
    files.log.write_text("no torch\n")
    slurms = paths.folder / "slurm" / "1.log"
    slurms.parent.mkdir()
    slurms.write_text("slurmstepd: error: no such image")
    assert logs_command(allocation=1, following=True, sweep=str(paths.folder)) == 0
    assert capsys.readouterr().out == "no torch\nslurmstepd: error: no such image\n"
    with pytest.raises(InvalidInput, match="allowed: 1 to 1"):
        logs_command(allocation=2, sweep=str(paths.folder))
    with pytest.raises(InvalidInput, match="neither a cell nor an allocation"):
        logs_command(sweep=str(paths.folder))


def test_watching_tells_changes_and_ends(
    paths: SweepPaths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.02)
    write_allocation(paths, 1, [(CELLS[0], 0), (CELLS[1], 0)])
    write_queue(paths, job_state(1, "PENDING", reason="Resources"), asked_at=time.time())
    output: list[str] = []

    def happen() -> None:
        seen("it waits for free nodes")
        queue(job_state(1, "RUNNING"))
        write_claim(paths, CELLS[0], 0, 1)
        seen(f"{CELLS[0]} trial 0: running")
        write_outcome(paths, CELLS[0], 0, "crash")
        seen("crash after 1 min 00 s: for a test")
        queue(job_state(1, "COMPLETED"))

    def queue(job: JobState) -> None:
        write_queue(paths, job, asked_at=time.time())

    def seen(text: str) -> None:
        def is_there() -> bool:
            output.append(capsys.readouterr().out)
            return text in "".join(output)

        wait_for(is_there)

    thread = threading.Thread(target=happen)
    thread.start()
    watch.watch(SweepReader(paths.folder), make_console())
    thread.join()
    output.append(capsys.readouterr().out)
    text = "".join(output)
    assert text.startswith("made: trials: 12 planned: 12 pending\n")
    assert "jobs: 1 run\n" in text
    assert "made: trials: 12 planned: 1 crash, 11 pending" in text
    assert "nothing runs now; `egobench sweep matrix.yaml` does the rest" in text


def test_watching_what_is_over_ends_at_once(paths: SweepPaths) -> None:
    assert status_command(str(paths.folder), watch=True) == 0


def test_a_page_fits_its_terminal(tmp_path: Path) -> None:
    paths = made_up.write_sweep(tmp_path / "many", num_cells=300, trials=1)
    cells = [made_up.make_cell(number).cell_id for number in range(300)]
    write_allocation(paths, 1, [(cell, 0) for cell in cells], began_at=[NOW])
    write_queue(paths, job_state(1, "RUNNING"))
    for cell in cells[:200]:
        write_claim(paths, cell, 0, 1)
    from rich.console import Console

    console = Console(width=100, height=30, record=True, force_terminal=True)
    with console.capture() as captured:
        console.print(watch.live_page(SweepReader(paths.folder).read(), 30))
    assert len(captured.get().splitlines()) <= 30
