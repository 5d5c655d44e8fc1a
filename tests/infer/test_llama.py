"""llama.cpp answers as torch does, pictures included; the package is built from source, so not every machine has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from asked import CPU, Asked, Fineness

from egobench.errors import InvalidInput
from egobench.infer.inputs import fixed_inputs
from egobench.infer.llama_session import pieces_of
from egobench.infer.reference import forced_logits, relative_error
from egobench.infer.runtimes import runtime_of
from egobench.infer.runtimes.torch_eager import TorchSession
from egobench.infer.session import Session
from egobench.models.internvl import EGOTINY, LoadedModel

LIMITS = {"as_trained": 2e-3, "int8": 0.04, "int4": 0.3}
"""Largest relative error of the logits: twice what was measured, and far below 1.4, what unrelated ones have."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    for package in ("llama_cpp", "gguf", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="pip install 'egobench[llama]'")
    made = {kind: tmp_path_factory.mktemp(kind) for kind in LIMITS}
    for kind, folder in made.items():
        facts = runtime_of("llama_cpp").prepare(EGOTINY, folder, kind, Fineness())
        assert facts["tower"] == "onnxruntime, float32" and facts["largest_error_share"] <= 1
    return made


def opened(folder: Path) -> Session:
    return runtime_of("llama_cpp").open_session(folder, CPU, 1, torch.float32)


@pytest.mark.parametrize("kind", LIMITS)
def test_logits_of_prompt_and_steps_are_torchs(kind: str, folders: dict[str, Path], egotiny: LoadedModel) -> None:
    session, exact = opened(folders[kind]), TorchSession(egotiny, CPU)
    for rows in (3, 1):  # the second batch takes another context
        inputs = fixed_inputs(egotiny.tokenizer, exact.facts, 64, rows)
        fed = np.random.default_rng(1).integers(10, 700, (rows, 4))
        made, wanted = forced_logits(session, inputs, fed), forced_logits(exact, inputs, fed)
        for part in (slice(0, 1), slice(1, None)):
            assert 0 < relative_error(made[:, part], wanted[:, part]) < LIMITS[kind]


def test_greedy_tokens_of_prompts_of_different_lengths(
    folders: dict[str, Path], egotiny: LoadedModel, asked: Asked
) -> None:
    session, exact = opened(folders["as_trained"]), TorchSession(egotiny, CPU)
    how = {"max_new_tokens": 12, "end_token_id": egotiny.end_token_id}
    wanted = exact.generate(asked.prompts, asked.pixels, **how)
    for _ in range(2):  # a batch forgets the one before
        assert session.generate(asked.prompts, asked.pixels, **how).tolist() == wanted.tolist()


def test_another_picture_is_another_answer(folders: dict[str, Path], egotiny: LoadedModel) -> None:
    session = opened(folders["as_trained"])
    inputs = fixed_inputs(egotiny.tokenizer, session.facts, 64, 2)
    logits = [session.prefill(inputs.ids, session.encode_images(one)) for one in (inputs.pixels, 255 - inputs.pixels)]
    assert relative_error(logits[0], logits[1]) > 0.01


def test_a_file_that_is_cut_off_is_refused_in_llama_cpps_words(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["int8"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / "llm.gguf").read_bytes()
    (tmp_path / "llm.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match=r"llm\.gguf: llama\.cpp cannot read it: \S"):
        opened(tmp_path)


def test_a_prompt_is_cut_into_text_and_pictures() -> None:
    features = np.arange(10, dtype=np.float32).reshape(5, 2)
    pieces = list(pieces_of(3, np.array([7, 9, 9, 8, 9, 9, 9]), features, image_token_id=9))
    assert [(one.start, one.is_text, len(one.what), one.is_last) for one in pieces] == [
        (0, True, 1, False), (1, False, 2, False), (3, True, 1, False), (4, False, 3, True),
    ]  # fmt: skip
    assert np.array_equal(np.concatenate([pieces[1].what, pieces[3].what]), features)
