"""The page of the blind test is made again, and its table is read whole."""

from __future__ import annotations

import csv

from benchmarks.predictor import blind


def test_the_committed_page_is_made_again() -> None:
    """If this fails: python -m benchmarks.predictor.blind."""
    assert (blind.HERE / "blind.md").read_text(encoding="utf-8") == blind.page()


def test_every_row_is_scored_or_left_out_and_none_that_ran_is_an_out_of_memory() -> None:
    with blind.TABLE.open(newline="", encoding="utf-8") as stream:
        methods = [row["method"] for row in csv.DictReader(stream)]
    scored = list(blind.score())
    assert len(scored) == sum(method not in blind.LEFT_OUT for method in methods) == 63
    assert all(one.verdict != "predicted_oom" for one in scored)
