"""Figures are of what they are named after, warm-up is in none of them, and a wrong answer is told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asked import CPU

from egobench.errors import EXIT_ENVIRONMENT, EXIT_INVALID_INPUT, InvalidInput
from egobench.infer.__main__ import main
from egobench.infer.inputs import fixed_inputs
from egobench.infer.measure import distribution, measure, opened, run_once
from egobench.infer.reference import Reference, check, reference_of
from egobench.infer.runtimes.torch_eager import TorchSession
from egobench.infer.session import Ids, Session
from egobench.models.internvl import EGOTINY, LoadedModel, tokenizer_of
from egobench.probes.memory import memory_probe
from egobench.records.inference import InferenceRequest, InferenceResult
from egobench.records.store import read_document, write_document
from egobench.spec.inference import InferenceSpec

SHORT = InferenceSpec(
    batch_sizes=(1, 2), num_prompt_tokens=48, num_new_tokens=4, num_repeats=3, num_warmup=1, threads=1
)


@pytest.fixture(scope="module")
def session(egotiny: LoadedModel) -> Session:
    return TorchSession(egotiny, CPU)


class WrongAtOneToken(TorchSession):
    """Reads prompts well, and says something else at every step: a kernel that is wrong at one shape."""

    def decode(self, tokens: Ids) -> Any:
        return super().decode(tokens).roll(1, dims=-1)


class SlowAtFirst(TorchSession):
    """Takes long over its first prompts, as one that compiles does."""

    num_slow = 1

    def prefill(self, ids: Ids, features: Any, **more: Any) -> Any:
        if self.num_slow:
            self.num_slow -= 1
            time.sleep(2)
        return super().prefill(ids, features, **more)


def test_runs_are_of_fixed_length_and_parts_add_up(session: Session, egotiny: LoadedModel) -> None:
    inputs = fixed_inputs(egotiny.tokenizer, session.facts, 48, 2)
    run = run_once(session, inputs, 6)
    assert run.tokens.shape == (2, 6)
    assert 0 < run.encoded_s < run.first_token_s < run.steps_s[0]
    assert len(run.steps_s) == 5 and sum(run.step_times_s) == pytest.approx(run.request_s - run.first_token_s)


def test_requests_hold_one_picture_each_and_do_not_depend_on_their_number(
    session: Session, egotiny: LoadedModel
) -> None:
    few, many = (fixed_inputs(egotiny.tokenizer, session.facts, 48, rows) for rows in (2, 5))
    assert many.ids.shape == (5, 48) and np.array_equal(few.ids, many.ids[:2])
    assert np.array_equal(few.pixels, many.pixels[:2])
    assert ((many.ids == session.facts.image_token_id).sum(axis=1) == 16).all()
    assert len(np.unique(many.ids[:, 20:30], axis=0)) == 5
    with pytest.raises(InvalidInput, match=r"num_prompt_tokens: 20, .*more than"):
        fixed_inputs(egotiny.tokenizer, session.facts, 20, 1)


def test_percentiles_are_samples() -> None:
    made = distribution([float(value) for value in range(1, 101)])
    assert (made.p50, made.p90, made.p99) == (51, 91, 100) and len(made.samples) == 100
    assert distribution([3.0, 1.0]).p99 == 3.0


def test_every_figure_of_a_batch(session: Session, egotiny: LoadedModel) -> None:
    inputs = fixed_inputs(egotiny.tokenizer, session.facts, 48, 8)
    reference = reference_of(session, inputs, 4)
    one, two = measure(session, inputs, SHORT, probe=memory_probe(CPU), reference=reference)
    assert (one.batch_size, two.batch_size, two.num_image_tokens) == (1, 2, 16)
    assert len(two.prefill_s.samples) == 3 and len(two.decode_step_s.samples) == 9
    assert two.tokens_per_s.p50 == pytest.approx(8 / two.request_s.p50)
    assert two.requests_per_s.samples == tuple(2 / second for second in two.request_s.samples)
    assert two.time_to_first_token_s.samples[0] == pytest.approx(
        two.prefill_s.samples[0] + two.image_encoding_s.samples[0]
    )
    assert two.energy_j is None and two.memory.peak_allocated_bytes is None
    assert two.memory.peak_rss_growth_bytes is not None
    for batch in (one, two):
        assert batch.outputs is not None and batch.outputs.agrees
        assert batch.outputs.num_equal_tokens == batch.outputs.num_tokens == 4 * batch.batch_size
        assert max(batch.outputs.prefill_error, batch.outputs.decode_error) < 1e-5


def test_warm_up_is_counted_and_in_no_figure(egotiny: LoadedModel) -> None:
    session = SlowAtFirst(egotiny, CPU)
    inputs = fixed_inputs(egotiny.tokenizer, session.facts, 48, 1)
    (batch,) = measure(session, inputs, SHORT.model_copy(update={"batch_sizes": (1,)}))
    assert batch.num_warmup == 1 and batch.warmup_s > 2
    assert max(batch.request_s.samples) < 2


def test_fast_and_wrong_is_told(session: Session, egotiny: LoadedModel) -> None:
    inputs = fixed_inputs(egotiny.tokenizer, session.facts, 48, 8)
    reference = reference_of(session, inputs, 4)
    wrong = WrongAtOneToken(egotiny, CPU)
    for batch in measure(wrong, inputs, SHORT, reference=reference):
        assert batch.outputs is not None and not batch.outputs.agrees
        assert batch.outputs.prefill_error < 1e-5 < SHORT.max_logits_error < batch.outputs.decode_error
        # The first token is the prompt's, and right.
        assert batch.outputs.num_equal_tokens == batch.batch_size


def test_a_reference_is_of_the_same_requests(session: Session, egotiny: LoadedModel, tmp_path: Path) -> None:
    inputs = fixed_inputs(egotiny.tokenizer, session.facts, 48, 2)
    path = tmp_path / "reference.npz"
    reference_of(session, inputs, 4).write(path)
    again = Reference.read(path)
    assert again.logits.shape == (2, 4, 768) and again.tokens.shape == (2, 4)
    assert [one.name for one in tmp_path.iterdir()] == ["reference.npz"]
    others = fixed_inputs(egotiny.tokenizer, session.facts, 50, 2)
    with pytest.raises(InvalidInput, match="other requests"):
        check(session, others, again.tokens, again, 1.0)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InvalidInput, match="cannot be read"):
        Reference.read(path)


def test_memory_of_loading_is_at_least_the_weights() -> None:
    size = 64 * 2**20

    class Heavy:
        def __init__(self) -> None:
            self.held = torch.ones(size // 4)

        def wait(self) -> None: ...

    opening = opened(Heavy, memory_probe(CPU))  # type: ignore[arg-type]
    grown = opening.load_memory.peak_rss_growth_bytes
    assert grown is not None and 0.9 * size < grown < 2 * size
    assert opening.load_time_s > 0


def fresh(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "egobench.infer", str(path)], capture_output=True, text=True, timeout=170, check=False
    )


def test_a_fresh_process_measures_and_asks(tmp_path: Path, egotiny: LoadedModel) -> None:
    request = {
        "runtime": "torch", "folder": str(EGOTINY), "result": str(tmp_path / "result.json"),
        "inference": SHORT.model_dump(mode="json"), "write_reference": str(tmp_path / "reference.npz"),
        "questions": {
            "data": {"format": "egoworld", "domain": "home", "num_validation": 40}, "image_px": 64, "max_length": 128,
            "batch_size": 16, "max_new_tokens": 8, "cache_folder": str(tmp_path),
            "predictions": str(tmp_path / "p.jsonl"),
        },
    }  # fmt: skip
    write_document(tmp_path / "request.json", request)
    done = fresh(tmp_path / "request.json")
    assert done.returncode == 0, done.stderr
    result = read_document(tmp_path / "result.json", InferenceResult)
    assert result is not None and result.measures is not None and result.answers is not None
    assert result.measures.threads == 1 and result.versions["torch"] == version("torch")
    assert result.measures.size_on_disk_bytes == (EGOTINY / "model.safetensors").stat().st_size
    assert result.answers.num_questions == 40 and result.answers.em > 50
    assert sum(one.num_questions for one in result.categories) == 40
    mean = sum(one.em * one.num_questions for one in result.categories) / 40
    assert mean == pytest.approx(result.answers.em)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(lines) == 40 and {line["category"] for line in lines} == {one.category for one in result.categories}
    assert Reference.read(tmp_path / "reference.npz").tokens.shape == (8, 4)


def test_answers_are_those_of_the_training_loop(session: Session, egotiny: LoadedModel, tmp_path: Path) -> None:
    import contextlib

    from egobench.evaluate.ask import Generation, generate, share
    from egobench.infer.questions import answer, questions_of
    from egobench.records.inference import QuestionsRequest

    asked = QuestionsRequest(
        data={"format": "egoworld", "domain": "home", "num_validation": 12}, image_px=64, max_length=128,
        cache_folder=str(tmp_path), predictions=str(tmp_path / "p.jsonl"),
    )  # fmt: skip
    tokenizer = tokenizer_of(EGOTINY)
    questions = questions_of(asked, session, tokenizer)
    how = Generation(5, 8, egotiny.pad_token_id, egotiny.end_token_id)
    theirs = generate(
        egotiny.model, tokenizer, questions, share(questions, 0, 1), how, lambda device: contextlib.nullcontext()
    )
    assert answer(session, tokenizer, questions, how) == theirs


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"runtime": "vllm"}, EXIT_ENVIRONMENT, "runtime 'vllm' needs"),
        ({"runtime": "onnx"}, EXIT_INVALID_INPUT, "runtime"),
        ({"folder": "/nowhere"}, EXIT_INVALID_INPUT, "config.json"),
    ],
)
def test_exit_code_and_last_line_say_what_is_wrong(
    change: dict[str, Any], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    request = {"runtime": "torch", "folder": str(EGOTINY), "result": str(tmp_path / "result.json")} | change
    write_document(tmp_path / "request.json", request)
    monkeypatch.setattr(sys, "argv", ["egobench.infer", str(tmp_path / "request.json")])
    assert main() == code
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "result.json").exists()


def test_a_model_that_is_not_quantized_may_be_off_by_rounding_only() -> None:
    assert SHORT.logits_limit("as_trained", "float32") == SHORT.logits_limit("distilled", "float32") == 0.01
    assert SHORT.logits_limit("as_trained", "bfloat16") == 0.2
    assert SHORT.logits_limit("int4", "float32") == SHORT.max_logits_error == 0.8


def test_requests_round_trip() -> None:
    request = InferenceRequest(runtime="torch", folder="a", result="b", inference=SHORT)
    assert InferenceRequest.model_validate_json(request.model_dump_json()) == request
