"""Ranks of a trial that keeps checkpoints save once more before their allocation ends, and the next attempt goes on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from egobench.errors import EXIT_AGAIN, EXIT_INTERRUPTED
from egobench.records.allocation import AllocationPaths, Interruption, Retry
from egobench.records.checkpoint import complete_checkpoints
from egobench.records.measures import MergedStep, StepRecord
from egobench.records.outcome import Outcome, Phase
from egobench.records.pulse import PulseReading
from egobench.records.rank import RankReport
from egobench.records.store import SweepPaths, TrialPaths, read_document, read_lines
from egobench.records.trial import Trial
from egobench.records.usage import Usage
from egobench.spec.keep import Save
from egobench.worker.__main__ import LOOP
from egobench.worker.last_save import LastSave
from egobench.worker.stop import Halt, Stop
from tests.worker.nodes import are_gone, await_it, await_steps, start_task
from tests.worker.trials import make_allocation, make_trial, outcome_of, start_worker

WARNING = Halt("warning", "the time limit is near", "timeout", save_within_s=60)
SIGNAL = Halt("signal", "SIGTERM", None, save_within_s=20)


def saving(trial: Trial, acceptable_loss_h: float = 1000) -> Trial:
    return trial.model_copy(update={"save": Save(acceptable_loss_h=acceptable_loss_h)})


def at(*phases: Phase) -> dict[int, PulseReading]:
    return {
        rank: PulseReading(counter=1, pid=1, phase=phase, step=3, monotonic_s=0, at=0)
        for rank, phase in enumerate(phases)
    }


def test_ranks_may_save_first(tmp_path: Path) -> None:
    request = tmp_path / "save"
    last = LastSave(saving(make_trial("c")), request)
    assert last.is_awaited(WARNING, at("forward", "save"), 100)
    assert request.exists()
    assert last.is_awaited(WARNING, at("save", "save"), 159)
    assert not last.is_awaited(WARNING, at("save", "save"), 161)  # too slow
    assert last.is_awaited(WARNING, at("save", "save"), 159)
    request.unlink()  # by the first rank: all have saved
    assert not last.is_awaited(WARNING, at("data", "data"), 120)


def test_a_signal_leaves_less_time_than_a_warning(tmp_path: Path) -> None:
    last = LastSave(saving(make_trial("c")), tmp_path / "save")
    assert last.is_awaited(WARNING, at("forward"), 100)
    assert last.is_awaited(SIGNAL, at("forward"), 110)
    assert not last.is_awaited(SIGNAL, at("forward"), 131)
    late = LastSave(saving(make_trial("c")), tmp_path / "save-2")
    assert late.is_awaited(WARNING, at("forward"), 100)
    assert late.is_awaited(SIGNAL, at("forward"), 155)
    assert not late.is_awaited(SIGNAL, at("forward"), 161)  # the warning's time is over as well


@pytest.mark.parametrize(
    ("trial", "halt", "phases"),
    [
        (make_trial("c"), WARNING, ("forward",)),  # keeps nothing
        (saving(make_trial("c")), Halt("cancel", "by somebody"), ("forward",)),
        (saving(make_trial("c")), Halt("superseded", "", None), ("forward",)),
        (saving(make_trial("c")), WARNING, ("load", "forward")),  # nothing to save yet
        (saving(make_trial("c")), WARNING, ("eval", "eval")),  # nobody looks for a request any more
        (saving(make_trial("c")), WARNING, ()),
    ],
)
def test_others_are_ended_at_once(tmp_path: Path, trial: Trial, halt: Halt, phases: tuple[Phase, ...]) -> None:
    assert not LastSave(trial, tmp_path / "save").is_awaited(halt, at(*phases), 100)
    assert not (tmp_path / "save").exists()


def test_what_ends_a_trial_says_how_long_a_save_may_take(tmp_path: Path) -> None:
    paths = AllocationPaths(tmp_path / "allocations" / "1")
    stop = Stop(paths, None, slurm=True, warned_before_s=300)
    stop.is_warned = True
    assert (halt := stop.everything()) is not None
    assert (halt.kind, halt.save_within_s) == ("warning", 270)
    stop._on_signal(signal.SIGTERM, None)
    assert (halt := stop.everything()) is not None
    assert (halt.kind, halt.save_within_s) == ("signal", 20)
    by_hand = Stop()
    by_hand._on_signal(signal.SIGINT, None)
    assert (halt := by_hand.everything()) is not None
    assert (halt.kind, halt.save_within_s) == ("cancel", 0)


STEPS = 200


def real_trial(name: str, acceptable_loss_h: float) -> Trial:
    trial = make_trial(name, ranks=2, steps=STEPS, trial_time_limit_s=600, quiet_limit_s=30)
    axes = trial.cell.axes | {"micro_batch_size": 2}
    cell = trial.cell.model_copy(update={"axes": axes})
    return saving(trial.model_copy(update={"cell": cell}), acceptable_loss_h)


def losses(trial: TrialPaths) -> list[float]:
    return [step.loss for step in read_lines(trial.steps, MergedStep)]


def saved_step(trial: TrialPaths) -> int:
    return next(document.step for _, document in complete_checkpoints(trial.checkpoints))


def signal_step(worker: subprocess.Popen[bytes], pids: Sequence[int], number: signal.Signals) -> None:
    children = subprocess.run(["pgrep", "-P", str(worker.pid)], capture_output=True, text=True, check=False).stdout
    for pid in [*pids, *map(int, children.split()), worker.pid]:
        os.kill(pid, number)


@pytest.mark.slow
def test_what_slurm_interrupts_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Warned, then told to end, then left alone; nothing is saved but what the endings ask for."""
    retry = Retry(max_attempts=4)
    trials = [real_trial("cut", 1000), real_trial("whole", 1000)]
    (tmp_path / "cache").mkdir()
    trials = [
        trial.model_copy(
            update={"placement": trial.placement.model_copy(update={"cache_folder": str(tmp_path / "cache")})}
        )
        for trial in trials
    ]
    paths = make_allocation(tmp_path / "s", trials, gpus_per_node=2, time_limit_min=30, retry=retry)
    cut, whole = (SweepPaths(tmp_path / "s").trial(name, 0) for name in ("cut", "whole"))

    worker = start_task(paths, "7", body=LOOP)
    pids = await_steps(cut, 2, timeout_s=180)
    signal_step(worker, pids, signal.SIGUSR2)
    assert worker.wait(timeout=120) == EXIT_AGAIN, paths.log.read_text()
    first = outcome_of(tmp_path / "s", "cut")
    assert (first.outcome, first.interrupted) == ("preempted", True)
    assert first.measures is not None
    saved = saved_step(cut)
    # All but what was trained until the worker, which looks every half second, saw that it was saved.
    assert 3 < saved <= first.measures.num_steps
    assert (first.measures.num_steps - saved) * first.measures.step_time_s < 15
    assert not cut.save_request.exists()

    worker = start_task(paths, "7", restarts=1, body=LOOP)
    pids = await_steps(cut, 2, other_than=tuple(pids), timeout_s=180)
    await_it(lambda: len(read_lines(cut.rank_steps(0), StepRecord)) > saved + 4, "it did not go on", 120)
    signal_step(worker, pids, signal.SIGTERM)
    assert worker.wait(timeout=120) == EXIT_INTERRUPTED, paths.log.read_text()
    assert are_gone(pids)
    assert read_document(cut.interrupted, Interruption) is not None
    again = saved_step(cut)
    assert saved + 4 < again

    worker = start_task(paths, "7", restarts=2, body=LOOP)
    assert worker.wait(timeout=400) == 0, paths.log.read_text()
    last = outcome_of(tmp_path / "s", "cut")
    assert (last.outcome, last.attempt) == ("ok", 3), last
    assert last.measures is not None
    assert last.measures.resumed_at == (saved, again)
    assert last.measures.num_steps == STEPS
    assert losses(cut) == losses(whole)
    assert last.launch_s is not None
    assert 0 < last.launch_s < last.ended_at - last.started_at
    assert not cut.checkpoints.exists()  # it is over

    spans = {span.start: span for span in _usage(paths).spans}
    assert all(span.measured_s > 0 for span in spans.values())  # what an interrupted attempt trained is not lost
    steps = read_lines(cut.steps, MergedStep)
    trained_s = sum(step.step_time_s for step in [*steps, *read_lines(whole.steps, MergedStep)])
    assert sum(span.measured_s + span.warmup_s for span in spans.values()) == pytest.approx(trained_s, rel=1e-6)


def _usage(paths: AllocationPaths) -> Usage:
    found = read_document(paths.usage, Usage)
    assert found is not None
    return found


@pytest.mark.slow
def test_a_killed_rank_costs_no_more_than_is_acceptable(tmp_path: Path) -> None:
    """Its trial is launched again, because the retry says so, and goes on from the last of its regular saves."""
    retry = Retry(outcomes=("crash",), max_attempts=2)
    trial = real_trial("cut", 1e-6)
    placement = trial.placement.model_copy(update={"cache_folder": str(tmp_path / "cache")})
    paths = make_allocation(tmp_path / "s", [trial.model_copy(update={"placement": placement})], retry=retry)
    cut = SweepPaths(tmp_path / "s").trial("cut", 0)
    worker = start_worker(paths.allocation, "--body", LOOP)
    pids = await_steps(cut, 2, timeout_s=180)
    await_it(lambda: any(complete_checkpoints(cut.checkpoints)), "it never saved", 60)
    os.kill(pids[1], signal.SIGKILL)
    said, _ = worker.communicate(timeout=400)
    assert worker.returncode == 0, said
    crashed = read_document(cut.attempts / "1" / "outcome.json", Outcome)
    assert crashed is not None
    assert crashed.outcome == "crash"
    last = outcome_of(tmp_path / "s", "cut")
    assert (last.outcome, last.attempt) == ("ok", 2)
    assert last.measures is not None
    assert len(last.measures.resumed_at) == 1
    assert [step.step for step in read_lines(cut.steps, MergedStep)] == list(range(STEPS))
    report = read_document(cut.rank_report(1), RankReport)
    assert report is not None
    assert report.summary is not None
    assert report.summary.resumed_at == last.measures.resumed_at
