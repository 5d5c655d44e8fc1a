"""One trial of a variant: make the model from its parent's, then measure it in a process of its own."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from safetensors import safe_open

from egobench.compress import CALIBRATED, QUANTIZERS
from egobench.compress.calibration import CalibrationSet
from egobench.compress.distill import distilled
from egobench.errors import EXIT_ENVIRONMENT, EXIT_INVALID_INPUT, EnvironmentProblem, InvalidInput, Mistake
from egobench.infer.runtimes import folder_of, runtime_of
from egobench.models.internvl import tokenizer_of
from egobench.probes import provenance
from egobench.records.inference import InferenceRequest, InferenceResult, QuestionsRequest
from egobench.records.provenance import Provenance
from egobench.records.rank import RankSummary
from egobench.records.store import TrialPaths, read_document, write_document
from egobench.records.trial import Trial
from egobench.records.variant import QuestionScores, VariantMeasures
from egobench.spec.inference import BY_ITSELF
from egobench.spec.quantization import Calibration
from egobench.spec.variants import Variant
from egobench.train import loop
from egobench.train.material import absolute, load_data
from egobench.train.rank import Rank
from egobench.train.resolve import resolve
from egobench.train.stages import Pulse
from egobench.worker.process import die_with_parent

LOOK_EVERY_S: Final = 0.2


@dataclass(frozen=True)
class Made:
    """A model on disk."""

    source: Path
    """The folder that a runtime which converts by itself reads, or the model itself."""
    folder: Path
    """What the runtime opens."""
    facts: dict[str, Any]
    took_s: float | None


def run(trial: Trial, paths: TrialPaths, rank: Rank, pulse: Pulse) -> RankSummary:
    """Run one rank of a variant's trial; only the first one measures.

    Raises:
        InvalidInput: the parent left no model, or one that cannot be used.
        EnvironmentProblem: the machine lacks what the kind or the runtime needs.
    """
    variant = trial.cell.variant
    assert variant is not None and trial.parent is not None
    parent = TrialPaths(paths.folder.parent.parent / trial.parent / str(trial.trial))
    if not (parent.model / "config.json").is_file():
        todo = "run the parent's trial again: `egobench sweep --retry ok --only ...`"
        raise InvalidInput([Mistake(str(parent.model), "the parent's trial left no model here", todo=todo)])
    began_at = time.time()
    summary: RankSummary | None = None
    if variant.distillation is not None:
        summary = loop.run(trial, paths, rank, pulse, distilled(variant.distillation, parent.model))
        if not rank.is_first:
            return summary
        made = Made(paths.model, paths.model, {}, None)
    else:
        pulse.mark("load", -1)
        made = make(trial, variant, parent.model, paths)
    return measure(trial, variant, paths, pulse, made, parent, summary, began_at)


def make(trial: Trial, variant: Variant, parent: Path, paths: TrialPaths) -> Made:
    """Quantize or convert the parent's model into `<trial>/model/`; leave it where it is if nothing is to be done."""
    began = time.perf_counter()
    if variant.runtime in BY_ITSELF:
        shutil.rmtree(paths.model, ignore_errors=True)
        facts = runtime_of(variant.runtime).prepare(parent, paths.model, variant.kind, variant.quantization)
        return Made(parent, folder_of(variant.runtime, parent, paths.model), facts, time.perf_counter() - began)
    if variant.kind == "as_trained":
        return Made(parent, parent, {}, None)
    calibration = None
    if variant.kind in CALIBRATED:
        own = variant.quantization.calibration
        calibration = _calibration(trial, own, parent)
    shutil.rmtree(paths.model, ignore_errors=True)
    quantize = resolve(QUANTIZERS, variant.kind, "variants.kind")
    facts = quantize(parent, paths.model, variant.quantization, calibration)
    return Made(paths.model, paths.model, facts, time.perf_counter() - began)


def measure(
    trial: Trial,
    variant: Variant,
    paths: TrialPaths,
    pulse: Pulse,
    made: Made,
    parent: TrialPaths,
    summary: RankSummary | None,
    began_at: float,
) -> RankSummary:
    """Measure the model in a fresh process, and say what came of it."""
    predictions = paths.predictions("variant")
    request = request_of(trial, variant, made.folder, paths.folder / "inference.json", predictions)
    if variant.kind != "distilled":
        # A student is another model than its teacher: only what was made from the same weights is held against them.
        request = request.model_copy(update={"reference": str(_reference(trial, variant, parent, pulse))})
    first_at = time.time()
    result = ask_process(request, paths.folder / "inference.request.json", pulse)
    measures = result.measures
    assert measures is not None
    num_parameters = count_parameters(made.source)
    found = VariantMeasures(
        kind=variant.kind,
        runtime=variant.runtime,
        lineage=trial.cell.lineage,
        num_parameters=num_parameters,
        make_time_s=made.took_s,
        facts=made.facts,
        inference=measures,
        answers=result.answers,
        categories=result.categories,
        scores=scores_of(predictions) if result.answers is not None else None,
        versions=result.versions,
    )
    if summary is None:
        summary = RankSummary(
            num_parameters=num_parameters, num_trainable_parameters=0, first_step_at=first_at, began_at=began_at
        )
        _leave_provenance(trial, paths, parent)
    return summary.model_copy(update={"variant": found})


def _calibration(trial: Trial, how: Calibration, model: Path) -> CalibrationSet:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    data = load_data(trial)
    return CalibrationSet.draw(
        data.train, tokenizer_of(model), how,
        num_image_tokens=int(config["image_seq_length"]), image_px=data.image_px, held_out=data.validation,
    )  # fmt: skip


def request_of(trial: Trial, variant: Variant, folder: Path, result: Path, predictions: Path) -> InferenceRequest:
    """Return what the measuring process is to do."""
    workload, axes = trial.cell.workload, trial.cell.axes
    on_gpu = trial.placement.device == "cuda"
    questions = None
    if workload.evaluation.num_questions != 0:
        data = workload.data.model_dump()
        if data["path"] is not None:
            data["path"] = str(absolute(trial, data["path"]))
        questions = QuestionsRequest(
            data=data,
            image_px=int(axes["image_px"]),
            max_length=int(axes["max_length"]),
            num_questions=workload.evaluation.num_questions,
            batch_size=workload.evaluation.batch_size,
            max_new_tokens=workload.evaluation.max_new_tokens,
            cache_folder=trial.placement.cache_folder,
            predictions=str(predictions),
        )
    return InferenceRequest(
        runtime=variant.runtime,
        kind=variant.kind,
        folder=str(folder),
        result=str(result),
        device="cuda" if on_gpu else "cpu",
        dtype=variant.dtype or ("bfloat16" if on_gpu else "float32"),
        inference=variant.inference,
        questions=questions,
    )


def _reference(trial: Trial, variant: Variant, parent: TrialPaths, pulse: Pulse) -> Path:
    """Return the outputs of the unchanged model in torch, which the first variant that needs them writes."""
    how = variant.inference.model_copy(update={"num_repeats": 1, "num_warmup": 0})
    name = hashlib.sha256(how.model_dump_json().encode()).hexdigest()[:12]
    path = parent.folder / f"reference.{name}.npz"
    if not path.is_file():
        own = variant.model_copy(
            update={"runtime": "torch", "kind": "as_trained", "dtype": "float32", "inference": how}
        )
        request = request_of(trial, own, parent.model, parent.folder / f"reference.{name}.json", path)
        request = request.model_copy(update={"questions": None, "write_reference": str(path)})
        ask_process(request, parent.folder / f"reference.{name}.request.json", pulse)
    return path


def ask_process(request: InferenceRequest, document: Path, pulse: Pulse) -> InferenceResult:
    """Run `python -m egobench.infer` on a request.

    Raises:
        InvalidInput: it refused the request.
        EnvironmentProblem: the machine lacks something.
        RuntimeError: it crashed; the message is its last word.
    """
    write_document(document, request)
    talk = document.with_suffix(".log")
    with talk.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "egobench.infer", str(document)],
            stdout=log, stderr=subprocess.STDOUT, preexec_fn=lambda: die_with_parent(signal.SIGKILL),
        )  # fmt: skip
        code = _watch(process, pulse)
    last = (talk.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    if code == EXIT_INVALID_INPUT:
        raise InvalidInput([Mistake(request.folder, last)])
    if code == EXIT_ENVIRONMENT:
        raise EnvironmentProblem(last)
    result = read_document(Path(request.result), InferenceResult) if code == 0 else None
    if result is None:
        raise RuntimeError(f"the measuring process ended with code {code}: {last} (all of it: {talk})")
    return result


def _watch(process: subprocess.Popen[bytes], pulse: Pulse) -> int:
    """Wait for a process, and let it count as our own progress as long as it computes."""
    spent_s = -1.0
    while (code := process.poll()) is None:
        try:
            now_s = sum(psutil.Process(process.pid).cpu_times()[:2])
        except psutil.Error:
            now_s = spent_s
        if now_s > spent_s:
            spent_s = now_s
            pulse.mark("eval", -1)
        time.sleep(LOOK_EVERY_S)
    return code


def count_parameters(folder: Path) -> int:
    """Return the numbers in a folder's weights."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a mapping
                size = 1
                for side in weights.get_slice(name).get_shape():
                    size *= side
                total += size
    return total


def scores_of(predictions: Path) -> QuestionScores:
    """Return every question's score, in the order of the file."""
    lines = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    places = sorted({line["category"] for line in lines})  # the order of `infer.questions.categories`
    return QuestionScores(
        digest=hashlib.sha256("\n".join(str(line["id"]) for line in lines).encode()).hexdigest()[:16],
        em=tuple(round(line["em"]) for line in lines),
        f1=tuple(round(line["f1"], 4) for line in lines),
        categories=tuple(places.index(line["category"]) for line in lines),
    )


def _leave_provenance(trial: Trial, paths: TrialPaths, parent: TrialPaths) -> None:
    """Write the provenance; data and weights are the parent's."""
    above = read_document(parent.provenance, Provenance)
    names = ("data_digest", "num_train", "num_validation", "skipped", "model_digest")
    inputs: Mapping[str, Any] = {name: getattr(above, name) for name in names} if above is not None else {}
    write_document(paths.provenance, provenance.capture(torch.device(trial.placement.device), 1, **inputs))
