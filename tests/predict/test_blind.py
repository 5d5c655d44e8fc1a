"""The pages of the blind tests are made again, and their tables are read whole."""

from __future__ import annotations

import csv
from typing import Any

import pytest

from benchmarks.predictor import blind, exact, rows, score, strangers, unseen


@pytest.mark.parametrize("test", [blind, unseen, exact, strangers])
def test_the_committed_page_is_made_again(test: Any) -> None:
    """If this fails: python -m benchmarks.predictor.blind, unseen, exact or strangers."""
    name = test.__name__.rsplit(".", 1)[-1]
    assert (test.HERE / f"{name}.md").read_text(encoding="utf-8") == test.page()


def test_every_row_is_scored_or_left_out_and_none_that_ran_is_an_out_of_memory() -> None:
    with blind.TABLE.open(newline="", encoding="utf-8") as stream:
        methods = [row["method"] for row in csv.DictReader(stream)]
    scored = list(blind.score())
    assert len(scored) == sum(method not in blind.LEFT_OUT for method in methods) == 63
    assert all(one.verdict != "predicted_oom" for one in scored)


@pytest.mark.parametrize(("test", "number"), [(unseen, 55), (exact, 31)])
def test_no_run_that_failed_is_said_to_fit(test: Any, number: int) -> None:
    scored = list(rows.score(test.TABLE))
    with test.TABLE.open(encoding="utf-8") as stream:
        assert len(scored) == len(stream.readlines()) - 1 == number
    failed = [one.verdict for one in scored if one.status == "oom"]
    assert failed and "fits" not in failed


def test_of_strangers_runs_that_failed_one_is_said_to_fit() -> None:
    read = strangers.read(strangers.TABLE)
    assert len(read) == 296 + 247
    failed = [one for one in score.score(read) if one.row.status == "oom"]
    assert len(failed) == 30
    assert [one.row.source for one in failed if one.verdict == "fits"] == ["hf-blog-4bit-bnb"]


def test_blip_2_is_more_than_its_llm() -> None:
    read = [one for one in strangers.read(strangers.TABLE) if one.source == "llm-chi-blip2" and not one.unmapped]
    assert [one.setting.shape.tower.layers for one in read if one.setting] == [39] * 5
    verdicts = sorted((one.row.status, one.verdict) for one in score.score(read))
    assert verdicts == [*3 * [("ok", "risky")], *2 * [("oom", "predicted_oom")]]


def test_what_was_mended_stays_so() -> None:
    scored = [*rows.score(unseen.TABLE), *rows.score(exact.TABLE)]
    # Liger's loss hardly depends on how long the samples are, which its page does not say.
    liger = [abs(one.memory_error or 1) for one in scored if one.name.endswith("hf_liger")]
    assert len(liger) == 12 and max(liger) < 0.09
    titan = [abs(one.time_error or 1) for one in scored if one.name.endswith("torchtitan")]
    assert len(titan) == 7 and max(titan) < 0.03


def test_allocated_memory_is_near_where_a_strangers_loop_is_known() -> None:
    sources = ("fitcheck-llm", "can-i-finetune-this", "nanovlm-measure-vram")
    found = [one for one in score.score(strangers.read(strangers.TABLE)) if one.row.source in sources]
    errors = sorted(abs(one.error) for one in found if one.error is not None and one.row.memory_kind == "allocated")
    assert len(errors) == 81
    assert errors[40] < 0.01 and errors[72] < 0.06
