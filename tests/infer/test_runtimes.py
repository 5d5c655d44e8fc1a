"""Every runtime that runs here answers as torch does: token by token in float32, closely where it is quantized."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from asked import CPU, Asked, Fineness

from egobench.errors import EnvironmentProblem, InvalidInput
from egobench.infer.folder import load_any, size_on_disk_bytes
from egobench.infer.inputs import fixed_inputs
from egobench.infer.reference import forced_logits, relative_error
from egobench.infer.runtimes import RUNTIMES, check_kind, missing, runtime_of
from egobench.infer.runtimes.torch_compiled import CompiledSession
from egobench.infer.runtimes.torch_eager import TorchSession
from egobench.infer.session import Session
from egobench.models.internvl import EGOTINY, LoadedModel, tokenizer_of
from egobench.models.parts import head, llm
from egobench.models.pixels import from_uint8
from egobench.models.prompt import left_padded
from egobench.spec.inference import RUNTIME_KINDS
from egobench.spec.runtimes import NEEDS

Opens = Callable[[str, str], Session]
EXACT = ("torch", "onnxruntime", "openvino")
QUANTIZED = {
    ("onnxruntime", "int8_dynamic"): 0.15,
    ("onnxruntime", "int8"): 0.08,
    ("onnxruntime", "int4"): 0.5,
    ("openvino", "int8"): 0.08,
    ("openvino", "int4"): 0.4,
}
"""Largest relative error of the logits: twice what was measured, and far below 1.4, what unrelated ones have."""


def by_transformers(loaded: LoadedModel, asked: Asked, max_new_tokens: int) -> np.ndarray:
    ids, mask = map(torch.from_numpy, left_padded(asked.prompts, loaded.pad_token_id))
    out = loaded.model.generate(
        input_ids=ids, attention_mask=mask, pixel_values=from_uint8(asked.pixels), max_new_tokens=max_new_tokens,
        do_sample=False,
    )  # fmt: skip
    made: np.ndarray = out[:, ids.shape[1] :].numpy()
    return made


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_greedy_tokens_are_those_of_transformers(
    runtime: str, session_of: Opens, egotiny: LoadedModel, asked: Asked
) -> None:
    wanted = by_transformers(egotiny, asked, 12)
    session = session_of(runtime, "as_trained")
    made = session.generate(asked.prompts, asked.pixels, max_new_tokens=12, end_token_id=session.facts.end_token_id)
    assert made.tolist() == wanted.tolist()
    assert (wanted == egotiny.end_token_id).any()


@pytest.mark.slow
def test_compiled_graphs_answer_as_transformers(egotiny: LoadedModel, asked: Asked) -> None:
    # The same graphs that inductor gets, on a backend that needs no compiler.
    session = CompiledSession(egotiny, CPU, backend="aot_eager")
    wanted = by_transformers(egotiny, asked, 12)
    for rows in (slice(None), slice(0, 1)):
        made = session.generate(
            asked.prompts[rows], asked.pixels[rows], max_new_tokens=12, end_token_id=egotiny.end_token_id
        )
        # One row alone may end sooner.
        assert made.tolist() == wanted[rows, : made.shape[1]].tolist()


@pytest.mark.slow
def test_half_precision_computes_the_same_model(egotiny: LoadedModel) -> None:
    exact = TorchSession(egotiny, CPU)
    inputs = fixed_inputs(egotiny.tokenizer, exact.facts, 64, 2)
    fed = np.random.default_rng(1).integers(10, 700, (2, 4))
    wanted = forced_logits(exact, inputs, fed)
    loaded = load_any(EGOTINY, CPU, torch.bfloat16)
    for half in (TorchSession(loaded, CPU), CompiledSession(loaded, CPU, backend="eager")):
        assert 1e-4 < relative_error(forced_logits(half, inputs, fed), wanted) < 0.05


@pytest.mark.slow
def test_inductor_answers_as_transformers(egotiny: LoadedModel, asked: Asked) -> None:
    session = CompiledSession(egotiny, CPU)
    made = session.generate(asked.prompts, asked.pixels, max_new_tokens=12, end_token_id=egotiny.end_token_id)
    assert made.tolist() == by_transformers(egotiny, asked, 12).tolist()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("runtime", EXACT)
def test_logits_of_prompt_and_steps_are_torchs(
    runtime: str, rows: int, session_of: Opens, egotiny: LoadedModel
) -> None:
    session = session_of(runtime, "as_trained")
    inputs = fixed_inputs(egotiny.tokenizer, session.facts, 64, rows)
    fed = np.random.default_rng(1).integers(10, 700, (rows, 4))
    made = forced_logits(session, inputs, fed)
    whole = np.concatenate([inputs.ids, fed[:, :3]], axis=1)
    with torch.no_grad():
        logits = egotiny.model(
            input_ids=torch.from_numpy(whole), pixel_values=from_uint8(inputs.pixels), use_cache=False
        ).logits.numpy()
    assert relative_error(made, logits[:, 63:67]) < 2e-4


@pytest.mark.parametrize(("runtime", "kind"), QUANTIZED)
def test_quantized_logits_are_close(runtime: str, kind: str, session_of: Opens, egotiny: LoadedModel) -> None:
    session, exact = session_of(runtime, kind), session_of("torch", "as_trained")
    inputs = fixed_inputs(egotiny.tokenizer, exact.facts, 64, 3)
    fed = np.random.default_rng(1).integers(10, 700, (3, 4))
    wanted, made = forced_logits(exact, inputs, fed), forced_logits(session, inputs, fed)
    for part in (slice(0, 1), slice(1, None)):  # the prompt, and steps of one token
        error = relative_error(made[:, part], wanted[:, part])
        assert 0 < error < QUANTIZED[runtime, kind]


@pytest.mark.slow
def test_prepare_quantizes_from_the_model_folder(egotiny: LoadedModel, tmp_path: Path) -> None:
    try:
        facts = runtime_of("onnxruntime").prepare(EGOTINY, tmp_path, "int8_dynamic", Fineness(parts="llm"))
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    assert facts["quantized"] == ["decoder"]
    assert not list(tmp_path.glob(".*"))
    files = {part: list(tmp_path.glob(f"{part}.onnx*")) for part in ("decoder", "vision")}
    sizes = {part: sum(path.stat().st_size for path in found) for part, found in files.items()}
    in_llm = sum(one.numel() for module in (llm(egotiny.model), head(egotiny.model)) for one in module.parameters())
    # The tower keeps 4 bytes a weight; the LLM has 1, and 2 for the embedding; graphs come on top.
    assert sizes["decoder"] < 1.8 * in_llm and sizes["vision"] > 4 * (egotiny.num_parameters - in_llm)
    assert size_on_disk_bytes(tmp_path) == sum(sizes.values())
    session = runtime_of("onnxruntime").open_session(tmp_path, CPU, 1, torch.float32)
    inputs = fixed_inputs(tokenizer_of(tmp_path), session.facts, 64, 1)
    assert np.isfinite(forced_logits(session, inputs, np.full((1, 2), 300))).all()


@pytest.mark.parametrize("runtime", EXACT)
def test_a_step_costs_one_position(runtime: str, session_of: Opens, egotiny: LoadedModel) -> None:
    session = session_of(runtime, "as_trained")
    inputs = fixed_inputs(egotiny.tokenizer, session.facts, 1024, 1)
    features = session.encode_images(inputs.pixels)
    prompts, steps = [], []
    for _ in range(3):
        began = time.perf_counter()
        tokens = session.greedy(session.prefill(inputs.ids, features, room=8))
        prompts.append(time.perf_counter() - began)
        for _ in range(4):
            began = time.perf_counter()
            tokens = session.greedy(session.decode(tokens))
            steps.append(time.perf_counter() - began)
    assert min(steps) < 0.6 * min(prompts)  # it would be about 1 if the prompt were computed again


@pytest.mark.parametrize("runtime", EXACT)
def test_many_pictures_stay_in_their_rows(runtime: str, session_of: Opens, egotiny: LoadedModel) -> None:
    # 20 rows of 16 image tokens: OpenVINO counted them in 8 bits, and was right up to the fifteenth row.
    session, exact = session_of(runtime, "as_trained"), TorchSession(egotiny, CPU)
    inputs = fixed_inputs(egotiny.tokenizer, session.facts, 40, 20)
    whole = session.to_numpy(session.prefill(inputs.ids, session.encode_images(inputs.pixels)))
    for row in (0, 14, 15, 19):
        alone = exact.encode_images(inputs.pixels[row : row + 1])
        wanted = exact.to_numpy(exact.prefill(inputs.ids[row : row + 1], alone))
        assert relative_error(whole[row : row + 1], wanted) < 1e-4


def test_a_batch_forgets_the_one_before(session_of: Opens, asked: Asked) -> None:
    for runtime in EXACT:
        session = session_of(runtime, "as_trained")
        first = session.generate(asked.prompts[:2], asked.pixels[:2], max_new_tokens=4)
        session.generate(asked.prompts[2:6], asked.pixels[2:6], max_new_tokens=4)
        assert session.generate(asked.prompts[:2], asked.pixels[:2], max_new_tokens=4).tolist() == first.tolist()


def test_tables_name_the_same_runtimes() -> None:
    assert set(RUNTIMES) == set(RUNTIME_KINDS)
    for name in RUNTIMES:
        module = runtime_of(name)
        assert callable(module.prepare) and callable(module.open_session)
        assert set(module.PACKAGES) <= set(NEEDS[name].packages)
        said = missing(name)
        assert said is None or said.startswith("needs ")


@pytest.mark.parametrize("runtime", ["vllm", "tensorrt_llm", "llama_cpp"])
def test_what_cannot_run_here_says_what_is_missing(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=f"runtime '{runtime}' needs"):
        runtime_of(runtime).open_session(tmp_path, CPU, 1, torch.float32)


def test_wrong_words_are_named() -> None:
    with pytest.raises(InvalidInput, match=r"did you mean 'onnxruntime'"):
        runtime_of("onnx_runtime")
    with pytest.raises(InvalidInput, match=r"openvino does not run 'awq'.*int8"):
        check_kind("openvino", "awq")


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "internvl", "quantization_config": {"quant_method": "awq"}}')
    with pytest.raises((InvalidInput, EnvironmentProblem), match=r"quantized already|needs"):
        runtime_of("onnxruntime").prepare(tmp_path, tmp_path / "out", "int8_dynamic", Fineness())
