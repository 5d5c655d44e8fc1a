"""What the report says of variants, from made-up measurements."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_variants import CATEGORIES, NUM_QUESTIONS, write_variants

from egobench.report import variants
from egobench.report.collect import collect
from egobench.report.command import report, verify
from egobench.report.losses import LEAST_QUESTIONS, _over_questions, verdict_of
from egobench.report.markdown import markdown_page
from egobench.report.page import html_page
from egobench.report.publish import publish
from egobench.report.scrub import scrub_rows
from egobench.report.variant_tables import categories_csv, variant_table, variants_csv
from egobench.report.variants import VariantRow, variant_rows


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write_variants(tmp_path)


def rows_of(sweep: Path) -> dict[str, VariantRow]:
    return {str(row.cell.axes["variant"]): row for row in variant_rows(collect(sweep))}


def test_every_variant_is_held_against_the_unchanged_model(sweep: Path) -> None:
    found = rows_of(sweep)
    assert {name: row.reached for name, row in found.items() if name != "torch"} == {
        "small": True, "lossy": False, "wrong": False, "orphan": None,
    }  # fmt: skip
    lost = found["lossy"].drop["em"]
    # Fewer than two points on average, and yet not shown to be fewer.
    assert lost.low is not None and lost.high is not None and lost.low < lost.value < lost.high
    assert lost.high > 2.0 > 0 < lost.low
    assert found["small"].drop["em"].value == found["small"].drop["em"].high == 0
    assert found["torch"].drop == {} and found["torch"].lineage == "trained > torch"


def test_the_page_and_the_table_say_the_same(sweep: Path) -> None:
    rows = scrub_rows(collect(sweep))
    text, page = markdown_page(rows), html_page(rows)
    for said in (text, page):
        assert "1 of 4 variants reach all targets" in said
        assert "its outputs are not its model" in said
        assert "misses F1 not inferior by 2 points" in said
        assert "Slower than the unchanged model in prefill or at the largest batch: small, lossy, wrong." in said
    assert "(0.300x)" in text and "(2.00x)" in text
    # What is not trained stands in no table of what is.
    assert text.count("| small | int8 |") == 1
    for said in (text, page):
        assert "parent_failed: trial 1 of 3: waits for" in said


def test_lines_for_spreadsheets(sweep: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(variants_csv(variant_rows(collect(sweep))))))
    own = {line["metric"]: line for line in lines if line["variant"] == "small"}
    assert float(own["decode_tokens_per_s"]["value"]) == pytest.approx(200)
    assert (own["size_on_disk_bytes"]["value"], own["em_drop"]["value"], own["em_drop"]["unit"]) == (
        "300",
        "0",
        "points",
    )


def test_published_variants_derive_again(sweep: Path, tmp_path: Path) -> None:
    folder = publish(sweep, tmp_path / "results")
    assert (folder / "variants.csv").read_text() == variants_csv(variant_rows(scrub_rows(collect(sweep))))
    assert verify([tmp_path / "results"]) == 0
    for name in ("variants.csv", "variant_categories.csv"):
        text = (folder / name).read_text()
        (folder / name).write_text("tampered\n")
        assert verify([tmp_path / "results"]) == 4
        (folder / name).write_text(text)


def test_what_is_lost_is_told_by_category_of_question(sweep: Path) -> None:
    found = rows_of(sweep)
    lossy = {one.category: one for one in found["lossy"].by_category}
    assert tuple(lossy) == CATEGORIES and {one.num_questions for one in lossy.values()} == {NUM_QUESTIONS // 4}
    lost = lossy["counting"].lost["em"]
    assert lost.low is not None and lost.high is not None and 0 < lost.low < lost.value < lost.high < 30
    # All questions together lost a quarter of that, and the other categories nothing.
    assert lost.value == pytest.approx(4 * found["lossy"].drop["em"].value)
    assert all(lossy[name].lost["em"].value == lossy[name].lost["em"].high == 0 for name in lossy if name != "counting")
    assert lossy["counting"].kept["em"].value < lossy["colour"].kept["em"].value
    assert found["torch"].by_category == ()


def test_a_handful_of_questions_has_no_interval() -> None:
    lost = _over_questions(np.full(LEAST_QUESTIONS - 1, 100.0), 3)
    assert (lost.value, lost.low, lost.high) == (100.0, None, None) and verdict_of(lost) == "no difference shown"
    assert verdict_of(_over_questions(np.full(LEAST_QUESTIONS, 100.0), 3)) == "worse"


def test_categories_in_page_table_and_lines(sweep: Path) -> None:
    rows = scrub_rows(collect(sweep))
    text, page = markdown_page(rows), html_page(rows)
    assert [line for line in text.splitlines() if line.startswith("| variant | colour (100) | counting (100)")]
    lost = rows_of(sweep)["lossy"].by_category[1].lost["f1"]
    [line] = [line for line in text.splitlines() if line.startswith("| student > lossy | 0.0")]
    assert f"{lost.value:.1f} \\[{lost.low:.1f}, {lost.high:.1f}\\] |" in line and line.count("~") == 3
    assert page.count("by category of question</summary>") == 3 and 'class="n worse">' in page
    lines = list(csv.DictReader(io.StringIO(categories_csv(variant_rows(rows)))))
    [own] = [
        one for one in lines
        if (one["variant"], one["category"], one["metric"]) == ("lossy", "counting", "f1_drop")
    ]  # fmt: skip
    assert (float(own["value"]), float(own["low"])) == (pytest.approx(lost.value), pytest.approx(lost.low))
    assert len(lines) == 3 * 4 * 4 and own["num_questions"] == "100"


def test_records_that_do_not_say_which_question_is_of_which_category(sweep: Path) -> None:
    for path in sweep.glob("*/*/outcome.json"):
        document = json.loads(path.read_text())
        if document["variant"] is not None:
            del document["variant"]["scores"]["categories"]
            path.write_text(json.dumps(document))
    found = variant_rows(collect(sweep))
    table = variant_table(found)
    assert table is not None and table.categories == () and categories_csv(found) == ""
    assert "lost by category" not in markdown_page(collect(sweep))


def test_a_report_looks_at_every_variant_once(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    real = variants.accuracy_drop
    monkeypatch.setattr(variants, "accuracy_drop", lambda *args: asked.append(args) or real(*args))
    report(str(sweep), out=tmp_path / "out", formats=["html", "md", "csv"])
    assert {path.name for path in (tmp_path / "out" / "synthetic").iterdir()} >= {"variant_categories.csv"}
    assert len(asked) == 2 * 4  # EM and F1 of all but the reference
