from __future__ import annotations

import statistics

import pytest

from benchmarks.predictor import score
from benchmarks.predictor.published import ANCHORS, Published, read

pytestmark = pytest.mark.skipif(not ANCHORS.is_dir(), reason=f"the published rows are not here: {ANCHORS}")


@pytest.fixture(scope="module")
def rows() -> list[Published]:
    return read()


def test_the_committed_page_and_table_are_made_again(rows: list[Published]) -> None:
    assert (score.HERE / "memory.md").read_text() == score.page(rows)
    assert (score.HERE / "memory.csv").read_text() == score.table(rows)


def test_every_row_has_a_setting_or_a_reason(rows: list[Published]) -> None:
    assert len(rows) == 754
    assert all((row.setting is None) == bool(row.unmapped) for row in rows)


def test_no_run_that_failed_was_said_to_fit(rows: list[Published]) -> None:
    failed = [one for one in score.score(rows) if one.row.status == "oom"]
    assert len(failed) > 50
    assert not [one.row.name for one in failed if one.verdict == "fits"]


def test_70_billion_parameters_are_near_with_constants_chosen_on_7(rows: list[Published]) -> None:
    errors = [
        abs(one.error)
        for one in score.score(rows)
        if one.error is not None and "70B" in one.group and one.row.memory_kind == "allocated"
    ]
    assert statistics.median(errors) < 0.03
    assert max(errors) < 0.10


def test_every_row_that_is_far_off_is_explained(rows: list[Published]) -> None:
    far = [one for one in score.score(rows) if abs(one.error or 0.0) > 0.2 and one.row.memory_kind != "soft"]
    assert not [one.row.name for one in far if not score.why(one)]
