"""A trial that was cut off and goes on takes the same steps as one that was not, to the last bit."""

from __future__ import annotations

import functools
import itertools
import json
import resource
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from resuming import attempt, attempt_in_ranks, lines_of, saving_trial
from training_trials import one_rank, run_keeping_weights

from egobench.models.internvl import EGOTINY
from egobench.probes.device import GpuSampler, Reading
from egobench.records.checkpoint import DOCUMENT, Checkpoint, complete_checkpoints, list_checkpoints
from egobench.records.measures import StepRecord
from egobench.records.rank import RankReport
from egobench.records.store import TrialPaths, read_document
from egobench.records.summary import merge_steps, summarise
from egobench.records.trial import Drill
from egobench.train.errors import Diverged
from egobench.train.loop import energy_over
from egobench.train.resume import Past
from egobench.train.rng import random_state, set_random_state
from egobench.train.saving import Answer, Interval, Looks

NUM_STEPS = 8
RECIPE: dict[str, Any] = {"num_steps": NUM_STEPS, "schedule": "cosine", "num_warmup_steps": 2, "weight_decay": 0.1}


def said(steps: Sequence[StepRecord]) -> list[dict[str, Any]]:
    """Everything of the lines that does not depend on the clock or the machine."""
    fields = {"step", "loss", "grad_norm", "learning_rate", "num_samples", "text_tokens", "padding_tokens", "skipped"}
    return [step.model_dump(include=fields) for step in steps]


def assert_same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == others.keys()
    # Bit by bit: 4-bit weights are stored as numbers that may be NaN, which equal nothing.
    unlike = [name for name in weights if not torch.equal(_bits(weights[name]), _bits(others[name]))]
    assert not unlike


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def saved_steps(folder: Path) -> list[int]:
    return [document.step for _, document in complete_checkpoints(TrialPaths(folder).checkpoints)]


@pytest.fixture
def with_dropout(tmp_path: Path) -> dict[str, str]:
    """egotiny, whose training draws random numbers."""
    folder = tmp_path / "with-dropout"
    shutil.copytree(EGOTINY, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.2
    (folder / "config.json").write_text(json.dumps(config))
    return {"path": str(folder)}


@pytest.mark.parametrize("save_after", [0, 3, 6])
def test_any_step_will_do(tmp_path: Path, save_after: int) -> None:
    trial = saving_trial(tmp_path, recipe=RECIPE)
    _, weights = run_keeping_weights(trial, tmp_path / "whole", one_rank())
    attempt(trial, tmp_path / "cut", save_after=[save_after], cut=("backward", save_after + 1))
    assert saved_steps(tmp_path / "cut") == [save_after + 1]
    summary, resumed = attempt(trial, tmp_path / "cut")
    assert said(lines_of(tmp_path / "cut")) == said(lines_of(tmp_path / "whole"))
    assert_same(resumed, weights)
    assert summary.resumed_at == (save_after + 1,)


@pytest.mark.parametrize(
    "axes",
    [
        {"num_accumulation_steps": 2, "micro_batch_size": 2, "padding": "max"},
        *(
            pytest.param(axes, marks=pytest.mark.slow)
            for axes in (
                {"precision": "bf16", "optimizer": "adamw_fused", "checkpointing": "full"},
                {"precision": "fp16"},
                {"optimizer": "adamw_8bit"},
                {"optimizer": "adamw_8bit_torchao", "padding": "packed"},
                {"method": "qlora", "padding": "bucketed", "micro_batch_size": 2},
            )
        ),
    ],
    ids=lambda axes: ",".join(map(str, axes.values())),
)
def test_twice_cut_off(tmp_path: Path, axes: dict[str, Any], with_dropout: dict[str, str]) -> None:
    """Over the end of an epoch (10 samples), with random numbers drawn in every step."""
    more: dict[str, Any] = {"axes": axes, "recipe": RECIPE, "data": {"num_train": 10}, "model": with_dropout}
    trial = saving_trial(tmp_path, **more)
    _, weights = run_keeping_weights(trial, tmp_path / "whole", one_rank())
    attempt(trial, tmp_path / "cut", save_after=[1], cut=("optimizer", 3))
    attempt(trial, tmp_path / "cut", save_after=[4], cut=("data", 6))
    assert saved_steps(tmp_path / "cut") == [5]  # the one before was removed
    summary, resumed = attempt(trial, tmp_path / "cut")
    assert said(lines_of(tmp_path / "cut")) == said(lines_of(tmp_path / "whole"))
    assert_same(resumed, weights)
    assert summary.resumed_at == (2, 5)
    assert not TrialPaths(tmp_path / "cut").save_request.exists()


@pytest.mark.slow
def test_a_checkpoint_before_the_first_update_that_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At this scale fp16 skips the first updates: there are no optimizer states to save, and none may be made."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(scaler, init_scale=2.0**24))
    trial = saving_trial(tmp_path, recipe=RECIPE | {"num_steps": 14}, axes={"precision": "fp16"})
    _, weights = run_keeping_weights(trial, tmp_path / "whole", one_rank())
    lines = lines_of(tmp_path / "whole")
    assert lines[1].skipped and not lines[-1].skipped
    attempt(trial, tmp_path / "cut", save_after=[1], cut=("backward", 3))
    _, resumed = attempt(trial, tmp_path / "cut")
    assert str(said(lines_of(tmp_path / "cut"))) == str(said(lines))  # a norm may be nan, which equals nothing
    assert_same(resumed, weights)


def test_the_largest_micro_batch_is_not_searched_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = {"micro_batch_size": "max"}
    trial = saving_trial(tmp_path, recipe=RECIPE, axes=axes, data={"num_train": 10})
    attempt(trial, tmp_path / "cut", save_after=[1], cut=("backward", 3))
    monkeypatch.setattr("egobench.train.setup.find_largest", lambda _: pytest.fail("it was found before"))
    summary, _ = attempt(trial, tmp_path / "cut")
    assert summary.resumed_at == (2,) and summary.micro_batch_size == 10


def test_dropout_draws(tmp_path: Path, with_dropout: dict[str, str]) -> None:
    """The tests above would pass without random numbers, too."""
    attempt(saving_trial(tmp_path, recipe=RECIPE), tmp_path / "plain", cut=("data", 1))
    attempt(saving_trial(tmp_path, recipe=RECIPE, model=with_dropout), tmp_path / "drawn", cut=("data", 1))
    assert lines_of(tmp_path / "plain")[0].loss != lines_of(tmp_path / "drawn")[0].loss


def test_ranks_go_on_together(tmp_path: Path, with_dropout: dict[str, str]) -> None:
    axes = {"strategy": "ddp", "gpus": 2, "micro_batch_size": 1, "num_accumulation_steps": 2}
    trial = saving_trial(tmp_path, axes=axes, recipe=RECIPE, data={"num_train": 10}, model=with_dropout)
    whole = attempt_in_ranks(trial, tmp_path / "whole", save_after=[2])  # saving changes nothing
    attempt_in_ranks(trial, tmp_path / "cut", save_after=[2], cut=("forward", 5))
    found = attempt_in_ranks(trial, tmp_path / "cut")
    for rank in range(2):
        assert said(lines_of(tmp_path / "cut", rank)) == said(lines_of(tmp_path / "whole", rank))
        assert found[rank][0].resumed_at == (3,)
    assert_same(found[0][1], whole[0][1])
    plain = attempt_in_ranks(trial.model_copy(update={"save": type(trial.save)()}), tmp_path / "plain")
    assert_same(found[0][1], plain[0][1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes",
    [
        {"strategy": "fsdp"},
        {"strategy": "fsdp", "method": "lora", "precision": "bf16"},
        {"strategy": "zero1"},
        {"strategy": "zero2", "precision": "bf16"},
        {"strategy": "zero3", "method": "lora"},
        {"strategy": "ddp", "method": "qlora"},
    ],
    ids=lambda axes: ",".join(axes.values()),
)
def test_every_strategy_goes_on(tmp_path: Path, axes: dict[str, Any]) -> None:
    axes = {"gpus": 2, "micro_batch_size": 1, "num_accumulation_steps": 2} | axes
    trial = saving_trial(tmp_path, axes=axes, recipe=RECIPE, model={"name": "egotiny"})
    whole = attempt_in_ranks(trial, tmp_path / "whole", save_after=[2])
    attempt_in_ranks(trial, tmp_path / "cut", save_after=[2], cut=("forward", 5))
    assert saved_steps(tmp_path / "cut") == [3]
    found = attempt_in_ranks(trial, tmp_path / "cut")
    assert found[0][0].resumed_at == (3,)
    for rank in range(2):
        assert said(lines_of(tmp_path / "cut", rank)) == said(lines_of(tmp_path / "whole", rank))
    assert_same(found[0][1], whole[0][1])


def test_lines_and_answers_of_the_first_attempt_count(tmp_path: Path) -> None:
    evaluation = {"num_questions": 4, "before": True}
    trial = saving_trial(tmp_path, recipe=RECIPE, evaluation=evaluation, model={"name": "egotiny"})
    folder, paths = tmp_path / "cut", TrialPaths(tmp_path / "cut")
    attempt(trial, folder, save_after=[3], cut=("data", 5))
    asked = paths.predictions("before").read_bytes()
    first = lines_of(folder)
    summary, _ = attempt(trial, folder)
    assert paths.predictions("before").read_bytes() == asked
    assert summary.before is not None
    assert summary.evaluation_s is not None
    assert summary.evaluation_s < summary.before.eval_time_s + summary.after.eval_time_s  # it was not asked again
    lines = lines_of(folder)
    assert lines[:4] == first[:4]
    assert lines[4].excluded == "resumed"  # and as many more as the first attempt needed to warm up
    assert summary.first_step_at == lines[4].started_at > first[-1].started_at

    measures = summarise(merge_steps([lines]), [RankReport(rank=0, outcome="ok", at=0, summary=summary)])
    assert measures is not None
    assert (measures.num_steps, measures.resumed_at) == (NUM_STEPS, (4,))
    steady = [step for step in merge_steps([lines]) if step.steady]
    assert 4 not in {step.step for step in steady}
    assert measures.step_time_s == pytest.approx(sum(step.step_time_s for step in steady) / len(steady))
    unfinished = summarise(merge_steps([lines]), [])
    assert unfinished is not None
    assert unfinished.resumed_at == (4,)


def test_energy_is_that_of_the_windows_steps_and_of_one_attempt(tmp_path: Path) -> None:
    attempt(saving_trial(tmp_path, recipe={"num_steps": 10}), tmp_path)
    lines = [line.model_copy(update={"started_at": 2.0 * line.step, "step_time_s": 1.0}) for line in lines_of(tmp_path)]
    sampler = GpuSampler.__new__(GpuSampler)  # what it read, without a GPU to read it from
    sampler.readings = [Reading(float(at), None, None, 100.0 * at, 0.5, None, None) for at in range(30)]
    window = [line for line in lines if line.step in (2, 3, 4, 7, 8)]
    used = energy_over(window, sampler, Past())
    # 4 s to 9 s, and 14 s to 17 s: within a piece there are no gaps, beyond it nobody asks.
    assert used == {"energy_j": pytest.approx(800), "power_w": pytest.approx(100), "gpu_utilisation": 0.5}
    resumed = energy_over(window, sampler, Past(step=7, records=tuple(lines[:7]), resumed_at=(7,)))
    assert resumed == {"energy_j": None, "power_w": pytest.approx(100), "gpu_utilisation": 0.5}
    assert energy_over(window, sampler, Past(step=9, records=tuple(lines[:9]), resumed_at=(9,))) == {}


def test_a_cold_start_lasts_as_long_as_the_first(tmp_path: Path) -> None:
    attempt(saving_trial(tmp_path, recipe={"num_steps": 12}), tmp_path)
    slow = [line.model_copy(update={"step_time_s": 9.0 if line.step < 4 else 1.0}) for line in lines_of(tmp_path)]
    past = Past(step=12, records=tuple(slow), resumed_at=(12,))
    assert [past.excluded(step) for step in (11, 12, 15, 16)] == ["", "resumed", "resumed", ""]
    again = Past(step=14, records=tuple(slow), resumed_at=(2, 14))
    assert [past.excluded(step) for step in (14, 15)] == ["resumed", "resumed"]
    assert [again.excluded(step) for step in (14, 15)] == ["resumed", ""]
    assert Past().excluded(0) == ""


@pytest.mark.slow
def test_half_a_checkpoint_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trial = saving_trial(tmp_path, recipe=RECIPE)
    folder, paths = tmp_path / "cut", TrialPaths(tmp_path / "cut")
    _, weights = run_keeping_weights(trial, tmp_path / "whole", one_rank())
    attempt(trial, folder, save_after=[1], cut=("forward", 3))
    older = tmp_path / "older"
    shutil.copytree(paths.checkpoints / "step-2", older)
    attempt(trial, folder, save_after=[4], cut=("save", 5))  # in the middle of the save: it has no name yet
    attempt(trial, folder, save_after=[4], cut=("forward", 6))
    assert saved_steps(folder) == [5]
    # It was whole when it got its name, but a file has lost its end since; the one before is still there.
    shutil.copytree(older, paths.checkpoints / "step-2")
    broken = next((paths.checkpoints / "step-5" / "state").glob("*.distcp"))
    broken.write_bytes(broken.read_bytes()[:-1])
    assert saved_steps(folder) == [2]
    capfd.readouterr()
    summary, resumed = attempt(trial, folder)
    assert "step-2: goes on at step 2" in capfd.readouterr().err
    assert summary.resumed_at == (2,)
    assert_same(resumed, weights)


@pytest.mark.slow
def test_a_save_that_is_cut_off_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from egobench.train import resume

    trial = saving_trial(tmp_path, recipe=RECIPE)
    attempt(trial, tmp_path, save_after=[1], cut=("forward", 3))

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    for moment in ("sizes", "write_document", "sync_folder", "remove"):
        monkeypatch.setattr(resume, moment, die)
        with pytest.raises(Killed):
            attempt(trial, tmp_path, save_after=[4])
        monkeypatch.undo()
        assert saved_steps(tmp_path)[-1] == 2, moment
    assert saved_steps(tmp_path) == [5, 2]  # killed between the two: both are whole
    attempt(trial, tmp_path, save_after=[6])
    assert saved_steps(tmp_path) == [7]
    assert not list(TrialPaths(tmp_path).checkpoints.glob(".*"))


def test_not_of_another_trial_nor_of_other_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trial = saving_trial(tmp_path, recipe=RECIPE)
    paths = TrialPaths(tmp_path / "cut")
    attempt(trial, paths.folder, save_after=[2], cut=("forward", 4))
    kept = tmp_path / "kept"
    shutil.copytree(paths.checkpoints, kept)

    other = saving_trial(tmp_path, recipe=RECIPE | {"learning_rate": 2e-3})
    summary, weights = attempt(other, paths.folder)
    assert summary.resumed_at == ()
    assert "step-3: not used, it is of another trial" in capfd.readouterr().err
    assert_same(weights, run_keeping_weights(other, tmp_path / "other", one_rank())[1])

    document = read_document(kept / "step-3" / DOCUMENT, Checkpoint)
    assert document is not None
    for field, value in {"code": "x", "packages": {}, "num_ranks": 2, "device": "H200"}.items():
        shutil.rmtree(paths.checkpoints)
        shutil.copytree(kept, paths.checkpoints)
        origin = document.origin.model_copy(update={field: value})
        changed = document.model_copy(update={"origin": origin}).model_dump_json()
        (paths.checkpoints / "step-3" / DOCUMENT).write_text(changed)
        attempt(trial, paths.folder, cut=("data", 1))
        assert f"not used, it is of another {field}" in capfd.readouterr().err
        assert [line.step for line in lines_of(paths.folder)] == [0]

    # Limits and intervals may change: they are no part of what is measured.
    shutil.rmtree(paths.checkpoints)
    shutil.copytree(kept, paths.checkpoints)
    placement = trial.placement.model_copy(update={"trial_time_limit_s": 7200})
    more = saving_trial(tmp_path, acceptable_loss_h=2000, recipe=RECIPE).model_copy(update={"placement": placement})
    assert attempt(more, paths.folder)[0].resumed_at == (3,)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file grows beyond 256 KiB: for the weights, the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_last_one_and_training_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    trial = saving_trial(tmp_path, recipe=RECIPE)
    attempt(trial, tmp_path, save_after=[1], cut=("forward", 3))
    request.getfixturevalue("small_files")
    capfd.readouterr()
    summary, _ = attempt(trial, tmp_path, save_after=[4])
    assert summary.resumed_at == (2,)
    assert len(lines_of(tmp_path)) == NUM_STEPS
    assert "cannot save" in (err := capfd.readouterr().err) and "File too large" in err, err
    paths = TrialPaths(tmp_path)
    assert saved_steps(tmp_path) == [2]
    assert [path.name for path in paths.checkpoints.iterdir()] == ["step-2"]  # what was written takes no space
    assert not paths.save_request.exists()  # whoever asked need not wait any more


def test_what_diverged_is_not_kept(tmp_path: Path) -> None:
    trial = saving_trial(tmp_path, recipe=RECIPE, drill=Drill(kind="nan", step=4, phase="forward"))
    with pytest.raises(Diverged):
        attempt(trial, tmp_path, save_after=[1, 4])
    assert saved_steps(tmp_path) == [2]


def test_nothing_is_kept_unasked(tmp_path: Path) -> None:
    trial = saving_trial(tmp_path, recipe=RECIPE)
    attempt(trial.model_copy(update={"save": type(trial.save)()}), tmp_path, save_after=[1])
    assert not TrialPaths(tmp_path).checkpoints.exists()
    assert list_checkpoints(TrialPaths(tmp_path).checkpoints) == []


def test_random_generators_go_on() -> None:
    import random

    import numpy as np

    def draw() -> list[float]:
        return [torch.rand(1).item(), float(np.random.rand()), np.random.randn(), random.random(), random.gauss(0, 1)]

    draw()
    state = random_state(torch.device("cpu"))
    drawn = draw()
    set_random_state(state, torch.device("cpu"))
    assert draw() == drawn


@pytest.mark.parametrize("step_s", [0.02, 0.7, 5.0, 100.0])
def test_no_interruption_costs_more_than_is_acceptable(step_s: float) -> None:
    acceptable_s, took_s = 400.0, 3.0
    now_s, saves = 0.0, [0.0]
    interval, looks = Interval(acceptable_s, 0, now_s), Looks(True, dist.HashStore(), 0)
    for step in range(int(4000 / step_s)):
        now_s += step_s

        def decide(step: int, look: int, now_s: float = now_s) -> Answer:
            return interval.decide(step, look, now_s)

        looks.tell(step, decide)
        if looks.told(step):
            assert now_s - saves[-1] <= acceptable_s
            interval.saved(step + 1, now_s, now_s + took_s)
            now_s += took_s
            saves.append(now_s)
        looks.tell(step, decide)
    gaps_s = [b - a - took_s for a, b in itertools.pairwise(saves)]
    assert len(gaps_s) > 4
    assert min(gaps_s) >= min(0.95 * acceptable_s, acceptable_s - 2 * step_s)


def test_saving_takes_no_more_than_half_of_the_time() -> None:
    interval, now_s, saving_s = Interval(1.0, 0, 0.0), 0.0, 0.0
    for step in range(1000):
        now_s += 1.0
        if interval.decide(step, step, now_s).is_time:
            interval.saved(step + 1, now_s, now_s + 20)
            now_s, saving_s = now_s + 20, saving_s + 20
    assert 0.4 * now_s < saving_s < 0.52 * now_s


def test_all_ranks_save_after_the_same_steps() -> None:
    """Ranks that come to their looks at any pace, before and after the first one has answered."""
    import threading
    import time

    store, seen = dist.HashStore(), [[] for _ in range(3)]  # type: list[list[int]]
    answers = {3: Answer(False, 5, 0), 5: Answer(False, 6, 1), 6: Answer(True, 7, 1), 7: Answer(True, 12, 0)}

    def train(rank: int) -> None:
        looks = Looks(rank == 0, store, 0)
        for step in range(40):
            time.sleep(0.002 * ((step * (rank + 2)) % 3))
            for _ in range(2):
                looks.tell(step, lambda _, look: answers.get(look, Answer(look % 9 == 0, look + 3, look % 2)))
                if looks.told(step):
                    seen[rank].append(step)

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][:3] == [0, 6, 7]
    assert len(seen[0]) > 5
