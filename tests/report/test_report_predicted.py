"""Predicted against measured: signed errors, fits and out-of-memory, canaries; never in a measured column."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from synthetic import GIB, write_sweep

from egobench.records.outcome import OutcomeName
from egobench.records.predicted import Predicted
from egobench.records.store import SweepPaths, read_document, write_document
from egobench.records.sweep import PlannedCell, Sweep
from egobench.report.collect import collect
from egobench.report.command import report, verify
from egobench.report.markdown import markdown_page
from egobench.report.page import html_page
from egobench.report.predicted import error, foretold, predicted_csv
from egobench.report.publish import publish, read_published
from egobench.report.scrub import scrub_rows
from egobench.report.stats import Summary
from egobench.report.tables import summary_csv

VARIED = {"precision": ["fp32", "bf16"], "micro_batch_size": [8, 32]}


def fate(axes: Mapping[str, Any], trial: int) -> tuple[OutcomeName, str]:
    return ("oom", "CUDA out of memory") if axes["micro_batch_size"] == 32 else ("ok", "")


def foreseen(cell: PlannedCell) -> PlannedCell:
    """Foretell too much memory by a tenth and half the time; fp32 with 32 samples is a canary."""
    is_big = cell.axes["micro_batch_size"] == 32
    verdict: Any = "fits" if not is_big else "predicted_oom" if cell.axes["precision"] == "fp32" else "risky"
    predicted = Predicted(
        verdict=verdict,
        assumed="every sample is 512 tokens long",
        constants="the shipped constants",
        predicted_allocated_bytes=20 * GIB,
        predicted_low_bytes=(90 if verdict == "predicted_oom" else 21) * GIB,
        predicted_high_bytes=95 * GIB,
        usable_bytes=79 * GIB,
        predicted_step_time_s=0.05,
        predicted_tokens_per_s=1000.0,
        predicted_trial_s=60,
    )
    return cell.model_copy(update={"predicted": predicted, "is_canary": verdict == "predicted_oom"})


def rewritten(folder: Path, change: Any) -> Path:
    paths = SweepPaths(folder)
    sweep = read_document(paths.sweep, Sweep)
    assert sweep is not None
    write_document(paths.sweep, sweep.model_copy(update={"cells": tuple(map(change, sweep.cells))}))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return rewritten(write_sweep(tmp_path, VARIED, fate=fate, compared=()), foreseen)


def test_errors_are_signed_and_over_the_measurement() -> None:
    assert error(11.0, Summary(10.0, None, None, 1)) == pytest.approx(0.1)
    assert error(9.0, Summary(10.0, None, None, 1)) == pytest.approx(-0.1)
    assert error(None, Summary(10.0, None, None, 1)) is None
    assert error(9.0, None) is None


def test_every_cell_has_a_line_and_every_verdict_is_counted(sweep: Path) -> None:
    rows = collect(sweep)
    found = foretold(rows)
    assert found is not None
    assert len(found.lines) == 4 and all(len(line) == len(found.headers) for line in found.lines)
    ran = rows.cells[0]
    measured = ran.summary("peak_allocated_bytes")
    assert measured is not None
    line = dict(zip(found.headers[2:], found.lines[0][2:], strict=True))
    assert found.lines[0][6:8] == (f"{measured.value / GIB:.2f}", f"{100 * (20 * GIB / measured.value - 1):+.1f}")
    assert line["predicted use of the GPU (GiB)"] == "21.0-95.0 of 79.0"
    assert found.fates == (("fits", "2", "0"), ("risky", "0", "1"), ("predicted_oom", "0", "1"))
    assert "Canaries, launched although predicted not to fit: 1; the prediction was right for 1 of 1." in found.summary
    assert "Not launched because they were predicted not to fit: 0 cells." in found.summary
    assert found.notes == ("Assumed: every sample is 512 tokens long.",)


def test_a_cell_that_failed_has_no_measured_number(sweep: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(predicted_csv(collect(sweep)))))
    assert len(rows) == 4 * 3
    for row in rows:
        assert float(row["predicted_allocated_bytes"]) == 20 * GIB
        assert (row["measured_allocated_bytes"] == "") == (row["outcome"] == "oom")
        if row["outcome"] == "ok":
            measured = float(row["measured_step_time_s"])
            assert float(row["step_time_error"]) == pytest.approx(0.05 / measured - 1)
            assert float(row["measured_tokens_per_s"]) > 0
    assert [row["is_canary"] for row in rows].count("true") == 3


def test_predicted_numbers_stand_in_no_measured_table(sweep: Path) -> None:
    plain = write_sweep(sweep.parent / "plain", VARIED, fate=fate, compared=())
    assert summary_csv(collect(sweep)) == summary_csv(collect(plain))
    before, after = markdown_page(collect(plain)), markdown_page(collect(sweep))
    assert "Predicted and measured" not in before
    assert before.split("<!-- egobench:end -->")[0].splitlines()[:12] == after.splitlines()[:12]


def test_html_markdown_and_csv_say_the_same(sweep: Path, tmp_path: Path) -> None:
    assert report(str(sweep), out=tmp_path / "reports", formats=("html", "csv", "md")) == 0
    folder = tmp_path / "reports" / "synthetic"
    page, table = (folder / "report.html").read_text(), (folder / "table.md").read_text()
    for text in ("Predicted and measured", "predicted use of the GPU (GiB)", "21.0-95.0 of 79.0"):
        assert text in page and text in table
    assert "| predicted_oom | 0 | 1 |" in table
    assert "(canary)" in page and 'href="#predicted"' in page
    assert (folder / "predicted.csv").read_text() == predicted_csv(scrub_rows(collect(sweep)))


def test_published_predictions_are_verified(sweep: Path, tmp_path: Path) -> None:
    folder = publish(sweep, tmp_path / "results")
    assert (folder / "predicted.csv").exists()
    assert verify([folder]) == 0
    assert foretold(read_published(folder)) == foretold(scrub_rows(collect(sweep)))
    (folder / "predicted.csv").write_text("cell_id\n")
    assert verify([folder]) == 4


def test_where_nothing_was_predicted_one_line_says_why(tmp_path: Path) -> None:
    because = Predicted(because="trials run on a CPU, whose memory and time no formula here describes")
    folder = write_sweep(tmp_path, VARIED, device="cpu")
    rows = collect(rewritten(folder, lambda cell: cell.model_copy(update={"predicted": because})))
    found = foretold(rows)
    assert found is not None and not found.lines and not found.fates
    assert found.summary == f"Nothing was predicted: {because.because}."
    assert predicted_csv(rows) == ""
    assert f"**Predicted and measured.** Nothing was predicted: {because.because}." in markdown_page(rows)
    assert found.summary in html_page(scrub_rows(rows))


def test_a_sweep_from_before_there_were_predictions_has_no_section(tmp_path: Path) -> None:
    rows = collect(write_sweep(tmp_path, VARIED))
    assert foretold(rows) is None and predicted_csv(rows) == ""
    assert 'id="predicted"' not in html_page(scrub_rows(rows))


def test_pruned_cells_and_rehearsed_failures(tmp_path: Path) -> None:
    folder = write_sweep(
        tmp_path, VARIED, compared=(),
        plan=lambda axes: ("predicted_oom", "too much") if axes["micro_batch_size"] == 32 else ("pending", ""),
    )  # fmt: skip
    found = foretold(collect(rewritten(folder, lambda cell: foreseen(cell).model_copy(update={"is_canary": False}))))
    assert found is not None
    assert "Not launched because they were predicted not to fit: 2 cells." in found.summary
    assert "Canaries" not in found.summary
    assert found.fates == (("fits", "2", "0"), ("risky", "0", "0"), ("predicted_oom", "0", "0"))


def test_paths_in_reasons_are_scrubbed(tmp_path: Path) -> None:
    because = Predicted(because="/home/somebody/models/x/config.json is not on this machine")
    folder = rewritten(write_sweep(tmp_path, VARIED), lambda cell: cell.model_copy(update={"predicted": because}))
    text = markdown_page(scrub_rows(collect(folder)))
    assert "somebody" not in text and "config.json is not on this machine" in text


def test_other_gpus_than_predicted_about_are_named(sweep: Path) -> None:
    paths = SweepPaths(sweep)
    document = read_document(paths.sweep, Sweep)
    assert document is not None
    site = document.site.model_copy(update={"gpu": "L4-24GB"})
    write_document(paths.sweep, document.model_copy(update={"site": site}))
    found = foretold(collect(sweep))
    assert found is not None
    assert found.notes[-1].startswith("Predicted for L4-24GB, but trials ran on SYNTHETIC GPU 80GB: ")
