from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from shown import RESULTS

from egobench.errors import InvalidInput
from egobench.report.chart_page import chart_page
from egobench.report.metrics import METRICS
from egobench.serve.dashboard import performance, profile
from egobench.serve.sources import Sources


@pytest.fixture
def sources(runs: Path) -> Sources:
    return Sources.of([], runs, RESULTS)


def test_here_first_then_what_is_committed(sources: Sources, runs: Path) -> None:
    keys = list(sources.all())
    assert keys[0] == "runs/shown" and "results/cpu-amd-epyc/quickstart" in keys
    assert list(Sources.of(["shown"], runs, runs / "none").all()) == ["runs/shown"]
    assert list(Sources.of([], runs / "none", runs / "none").all()) == []
    with pytest.raises(InvalidInput, match="there is no sweep 'shwon'"):
        Sources.of(["shwon"], runs, RESULTS)


def test_rows_are_read_again_only_when_files_changed(sources: Sources) -> None:
    source = sources.all()["runs/shown"]
    first = sources.rows(source)
    assert sources.rows(source) is first
    outcome = next(source.folder.glob("*/*/outcome.json"))
    text = outcome.read_bytes()
    outcome.write_bytes(text)
    assert sources.rows(source) is not first


def test_numbers_are_those_of_the_committed_csv(sources: Sources) -> None:
    source = sources.all()["results/cpu-amd-epyc/quickstart"]
    rows = sources.rows(source)
    page = performance(source, rows)
    with (source.folder / "summary.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["metric"] in ("tokens_per_s", "f1_after")]
    assert lines
    for line in lines:
        cell = next(one for one in rows.cells if one.cell_id == line["cell_id"])
        summary = cell.summary(line["metric"])
        assert summary is not None and float(line["value"]) == pytest.approx(summary.value)
        assert METRICS[line["metric"]].show(summary).split(" ")[0] in page
    assert 'href="/report/results/cpu-amd-epyc/quickstart"' in page
    assert len(re.findall(r"<tr title=", page)) == len(rows.trained)


def test_kernels_trace_and_how_to_ask_for_one(sources: Sources) -> None:
    source = sources.all()["runs/shown"]
    page = profile(source, sources.rows(source))
    assert "400" in page and "trace-20.json.gz" in page and "1 cell was not profiled" in page
    assert "aten::mm&lt;script&gt;" in page and "<script>" not in page
    published = sources.all()["results/cpu-amd-epyc/quickstart"]
    page = profile(published, sources.rows(published))
    assert "No trial of quickstart was profiled" in page and "profile:\n  steps:" in page


def test_chart_page_draws_what_is_asked_for_and_loads_nothing(sources: Sources) -> None:
    page = chart_page(sources.rows(sources.all()["results/cpu-amd-epyc/quickstart"]), ["pareto", "kernels"])
    assert page.count("<figure>") == 1 and 'id="chart-pareto"' in page and "default-src 'none'" in page
