"""The scoreboard of time: what is committed is what the code says, and sources that were not fitted are met."""

from __future__ import annotations

import statistics
import time
from itertools import product

import pytest

from benchmarks.predictor.published import ANCHORS, Published, read
from benchmarks.predictor.score_inference import decoded
from benchmarks.predictor.score_time import HERE, page, score, table
from egobench.predict.time import predict_time
from tests.predict.time_settings import INTERNVL3_8B, batch, changed, setting

needs_anchors = pytest.mark.skipif(not ANCHORS.exists(), reason="the published rows are not part of the repository")


@pytest.fixture(scope="module")
def rows() -> list[Published]:
    return read()


@needs_anchors
def test_the_committed_tables_are_what_the_code_says(rows: list[Published]) -> None:
    assert (HERE / "time.md").read_text(encoding="utf-8") == page(rows)
    assert (HERE / "time.csv").read_text(encoding="utf-8") == table(rows)


@needs_anchors
def test_sources_that_were_not_fitted_are_met(rows: list[Published]) -> None:
    judged = [abs(one.error) for one in score(rows) if one.part == "judged" and one.is_absolute]
    assert len(judged) >= 39
    assert statistics.median(judged) < 0.06


@needs_anchors
def test_published_decoding_speeds_that_were_not_fitted_are_met() -> None:
    judged = [abs(one.error) for one in decoded() if one.part == "judged"]
    assert statistics.median(judged) < 0.10


def test_a_plan_of_many_cells_is_predicted_in_seconds() -> None:
    start = setting(INTERNVL3_8B, batch(4, 2300, 24))
    cells = [
        changed(start, strategy=strategy, gpus=gpus, method=method, precision=precision, checkpointing=checkpointing)
        for strategy, gpus, method, precision, checkpointing in product(
            ("ddp", "fsdp", "zero1", "zero2", "zero3"),
            (1, 2, 4, 8, 16, 32, 64, 128),
            ("full", "lora", "freeze"),
            ("bf16", "bf16_pure", "fp16"),
            ("none", "full", "every_2"),
        )
    ]
    for cell in cells:  # what cells share is counted once
        predict_time(cell)
    began = time.process_time()
    for cell in cells:
        assert predict_time(cell) is not None
    assert (time.process_time() - began) / len(cells) < 100e-6
