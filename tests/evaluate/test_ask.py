"""Answers do not depend on who shares a batch."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from egobench.data import source
from egobench.evaluate.ask import Generation, Questions, evaluate, generate, share
from egobench.models.internvl import LoadedModel, build
from egobench.models.prompt import encode_all

CPU = torch.device("cpu")


def no_context(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return build({"name": "egotiny"}, attention="sdpa", dtype=torch.float32, device=CPU, seed=0)


@pytest.fixture(scope="module")
def questions(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Questions:
    spec = {"format": "egoworld", "domain": "home", "num_validation": 17}
    data = source.load(spec, "validation", cache_dir=tmp_path_factory.mktemp("cache"))
    asked = encode_all(data.samples, loaded.tokenizer, loaded.num_image_tokens, 128)
    return Questions(asked.samples, asked.encoded, lambda indices: data.pixels([asked.samples[i] for i in indices], 64))


def how(loaded: LoadedModel, batch_size: int) -> Generation:
    return Generation(batch_size, 8, loaded.pad_token_id, loaded.end_token_id)


def test_batched_answers_equal_one_by_one(loaded: LoadedModel, questions: Questions) -> None:
    everything = share(questions, 0, 1)
    together = generate(loaded.model, loaded.tokenizer, questions, everything, how(loaded, 6), no_context)
    alone = generate(loaded.model, loaded.tokenizer, questions, everything, how(loaded, 1), no_context)
    assert together == alone
    assert any(together[0].values())
    assert len({len(item.prompt_ids) for item in questions.encoded}) > 1


def test_ranks_share_the_questions_without_gap_or_overlap(questions: Questions) -> None:
    shares = [share(questions, rank, 3) for rank in range(3)]
    assert sorted(index for part in shares for index in part) == list(range(17))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_training_mode_comes_back(loaded: LoadedModel, questions: Questions) -> None:
    loaded.model.train()
    try:
        generate(loaded.model, loaded.tokenizer, questions, [0], how(loaded, 1), no_context)
        assert loaded.model.training
    finally:
        loaded.model.eval()


def test_only_the_first_rank_judges(loaded: LoadedModel, questions: Questions, tmp_path: Path) -> None:
    gathered: list[Any] = []
    for rank in (1, 0):

        def gather(own: Any) -> list[Any]:
            gathered.append(own)
            return gathered

        path = tmp_path / "predictions.jsonl"
        result = evaluate(
            loaded.model, loaded.tokenizer, questions, how(loaded, 8), no_context,
            rank=rank, num_ranks=2, gather=gather, path=path,
        )  # fmt: skip
        assert (result is None) == (rank == 1) == (not path.exists())
    assert result is not None
    assert result.num_questions == 17
    assert 0 <= result.em_low <= result.em <= result.f1 <= 100
