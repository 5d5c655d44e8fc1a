"""Rehearsed failures fail for real, at the step that was asked for, and leave the steps before it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_trials import make_trial, run_here

from egobench.probes.pulse import read_pulse
from egobench.records.measures import StepRecord
from egobench.records.provenance import Provenance
from egobench.records.store import TrialPaths, read_document, read_lines
from egobench.records.trial import Drill
from egobench.train.drill import DrillError
from egobench.train.errors import Diverged


def steps_left(folder: Path) -> list[int]:
    return [record.step for record in read_lines(TrialPaths(folder).rank_steps(0), StepRecord)]


def test_nan_is_found_at_its_step(tmp_path: Path) -> None:
    with pytest.raises(Diverged) as caught:
        run_here(make_trial(tmp_path, drill=Drill(kind="nan", step=2, phase="forward")), tmp_path)
    assert (caught.value.step, caught.value.what) == (2, "loss")
    lines = read_lines(TrialPaths(tmp_path).rank_steps(0), StepRecord)
    assert [line.step for line in lines] == [0, 1, 2]
    assert lines[2].loss != lines[2].loss


def test_oom_is_the_allocators_own_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator: can't allocate memory"):
        run_here(make_trial(tmp_path, drill=Drill(kind="oom", step=1, phase="backward")), tmp_path)
    assert steps_left(tmp_path) == [0]
    pulse = read_pulse(TrialPaths(tmp_path).rank_pulse(0))
    assert pulse is not None
    assert (pulse.phase, pulse.step) == ("backward", 1)
    assert read_document(TrialPaths(tmp_path).provenance, Provenance) is not None


def test_host_oom_is_a_memory_error_and_the_process_lives_on(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        run_here(make_trial(tmp_path, drill=Drill(kind="host_oom", step=0, phase="data")), tmp_path)
    assert len(bytearray(2**27)) == 2**27


def test_raise_outside_the_steps(tmp_path: Path) -> None:
    with pytest.raises(DrillError):
        run_here(make_trial(tmp_path, drill=Drill(kind="raise", step=-1, phase="load")), tmp_path)


def test_another_rank_is_left_alone(tmp_path: Path) -> None:
    drill = Drill(kind="raise", rank=1, step=0, phase="forward")
    assert len(run_here(make_trial(tmp_path, drill=drill, recipe={"num_steps": 1}), tmp_path)[1]) == 1


def test_slow_is_slow_in_its_phase(tmp_path: Path) -> None:
    drill = Drill(kind="slow", step=1, phase="optimizer")
    _, steps = run_here(make_trial(tmp_path, drill=drill, recipe={"num_steps": 2}), tmp_path)
    assert steps[1].optimizer_s > 0.5  # 1.25 x the quiet limit of 0.4 s


@pytest.mark.parametrize(("kind", "code"), [("sigkill", -signal.SIGKILL), ("hang", None)])
def test_a_rank_that_dies_or_hangs_leaves_its_steps(tmp_path: Path, kind: str, code: int | None) -> None:
    script = (
        "import sys; from pathlib import Path; from training_trials import *; folder = Path(sys.argv[1]);"
        "run_here(make_trial(folder, drill=Drill(kind=sys.argv[2], step=2, phase='forward')), folder)"
    )
    command = [sys.executable, "-c", script, str(tmp_path), kind]
    process = subprocess.Popen(command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL)
    try:
        if code is None:
            wait_for_pulse(tmp_path)
            assert process.poll() is None
        else:
            assert process.wait(150) == code
    finally:
        process.kill()
        process.wait()
    assert steps_left(tmp_path) == [0, 1]


def wait_for_pulse(folder: Path) -> None:
    import time

    end = time.monotonic() + 150
    while time.monotonic() < end:
        pulse = read_pulse(TrialPaths(folder).rank_pulse(0))
        if pulse is not None and (pulse.phase, pulse.step) == ("forward", 2):
            return
        time.sleep(0.05)
    raise AssertionError("the drill was never reached")
