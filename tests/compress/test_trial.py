"""A variant's trial, from the parent's exported model to what the record says; measured in real processes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))

from training_trials import make_trial, one_rank

from egobench.compress.trial import ask_process, run
from egobench.errors import InvalidInput
from egobench.models.internvl import EGOTINY
from egobench.probes.pulse import Pulse
from egobench.records.inference import InferenceRequest
from egobench.records.provenance import Provenance
from egobench.records.rank import RankSummary
from egobench.records.store import TrialPaths, read_document
from egobench.records.trial import Trial
from egobench.records.variant import VariantMeasures
from egobench.spec.variants import Variant

INFERENCE = {"batch_sizes": [1, 2], "num_prompt_tokens": 48, "num_new_tokens": 4, "num_repeats": 2, "num_warmup": 1}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep whose only trained trial left egotiny's weights."""
    parent = TrialPaths(tmp_path / "parent" / "0")
    shutil.copytree(EGOTINY, parent.model)
    return tmp_path


def variant_trial(sweep: Path, number: int = 0, **settings: Any) -> tuple[Trial, TrialPaths]:
    evaluation = {"num_questions": 8, "batch_size": 4}
    recipe = {"num_steps": 2, "learning_rate": 1e-4, "max_length": 96}
    made = make_trial(sweep, model={"name": "egotiny"}, evaluation=evaluation, recipe=recipe)
    variant = Variant.model_validate({"inference": INFERENCE, **settings})
    cell = made.cell.model_copy(update={"variant": variant, "lineage": (variant.name,), "cell_id": variant.name})
    trial = made.model_copy(update={"cell": cell, "parent": "parent", "trial": number})
    return trial, TrialPaths(sweep / variant.name / str(number))


def run_variant(trial: Trial, paths: TrialPaths) -> tuple[RankSummary, VariantMeasures]:
    paths.ranks.mkdir(parents=True)
    summary = run(trial, paths, one_rank(), Pulse(paths.rank_pulse(0)))
    assert summary.variant is not None
    return summary, summary.variant


@pytest.mark.slow
def test_fewer_bits_and_the_unchanged_model_answer_the_same_questions(sweep: Path) -> None:
    summary, whole = run_variant(*variant_trial(sweep, name="torch", kind="as_trained"))
    trial, paths = variant_trial(sweep, name="small", kind="int8")
    _, small = run_variant(trial, paths)
    assert summary.num_trainable_parameters == 0 and whole.num_parameters == 1_302_656
    assert (whole.kind, small.kind, small.lineage) == ("as_trained", "int8", ("small",))
    assert [batch.batch_size for batch in small.inference.batches] == [1, 2]
    # Both are held against the parent's own outputs, which were computed once.
    assert whole.inference.agrees and small.inference.agrees
    assert len(list((sweep / "parent" / "0").glob("reference.*.npz"))) == 1
    assert small.inference.size_on_disk_bytes < 0.6 * whole.inference.size_on_disk_bytes
    assert small.make_time_s is not None and whole.make_time_s is None
    assert small.facts["bits"] == 8
    assert small.answers is not None and whole.answers is not None and small.answers.num_questions == 8
    assert small.scores is not None and whole.scores is not None
    assert small.scores.digest == whole.scores.digest and len(small.scores.em) == 8
    assert 100 * sum(small.scores.em) / 8 == pytest.approx(small.answers.em)
    assert read_document(paths.provenance, Provenance) is not None
    assert (paths.model / "config.json").is_file()  # reloaded from there, and left for who wants it


@pytest.mark.slow
def test_a_student_is_trained_exported_and_measured(sweep: Path) -> None:
    student = {"student": {"layers": 1}, "cross_entropy": 1.0}
    trial, paths = variant_trial(sweep, name="student", kind="distilled", distillation=student)
    trial = trial.model_copy(update={"save": trial.save.model_copy(update={"export": "merged"})})
    summary, found = run_variant(trial, paths)
    assert found.num_parameters == summary.num_parameters < 1_200_000
    assert json.loads((paths.model / "config.json").read_text())["text_config"]["num_hidden_layers"] == 1
    assert found.inference.agrees is None  # another model than its teacher: there is nothing to agree with
    assert summary.after is not None and found.answers is not None
    assert found.answers.em == summary.after.em


def test_a_parent_without_a_model_is_one_clear_error(sweep: Path) -> None:
    trial, paths = variant_trial(sweep, name="torch", kind="as_trained")
    shutil.rmtree(sweep / "parent" / "0" / "model")
    with pytest.raises(InvalidInput, match="the parent's trial left no model here"):
        run_variant(trial, paths)


@pytest.mark.slow
def test_a_damaged_parent_is_told_by_the_process_that_reads_it(sweep: Path) -> None:
    trial, paths = variant_trial(sweep, name="torch", kind="as_trained")
    weights = sweep / "parent" / "0" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises((InvalidInput, RuntimeError), match="safetensors"):
        run_variant(trial, paths)


def test_a_process_that_crashes_is_told_with_its_last_word(tmp_path: Path) -> None:
    request = InferenceRequest(runtime="torch", folder=str(tmp_path / "nowhere"), result=str(tmp_path / "result.json"))
    with pytest.raises((InvalidInput, RuntimeError), match="nowhere"):
        ask_process(request, tmp_path / "request.json", Pulse(tmp_path / "pulse"))
