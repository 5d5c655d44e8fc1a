from __future__ import annotations

import base64
import gzip
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from synthetic import write_sweep

from egobench.errors import InvalidInput
from egobench.records.outcome import OutcomeName
from egobench.records.store import SweepPaths, write_document
from egobench.records.sweep import Sweep
from egobench.report.charts import featured
from egobench.report.collect import collect
from egobench.report.command import report
from egobench.report.page import html_page
from egobench.report.scrub import scrub_rows
from egobench.report.verdict import decide
from egobench.spec.targets import AtLeast, Targets


@pytest.fixture(scope="module")
def page(mixed_sweep: Path) -> str:
    return html_page(scrub_rows(collect(mixed_sweep)))


def test_sections_come_in_the_promised_order(page: str) -> None:
    order = [
        "Targets met:", "<h2>Hardware and versions", "<h2>All cells", "<h2>Throughput against memory",
        "<h2>What each axis does", "<h2>Where a step", "<h2>What a profiled step consists of",
        "<h2>What the peak consists of", "<h2>Loss", "<h2>Outcomes",
        "<h2>Where the GPU time went", "<h2>Accuracy before", "<h2>How it was measured", "<h2>Matrix",
    ]  # fmt: skip
    places = [page.index(text) for text in order]
    assert places == sorted(places)


def test_text_from_data_is_escaped(page: str) -> None:
    assert "alert(1)" in page and "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_nothing_points_to_the_network(page: str) -> None:
    own = re.sub(r"<script>!function.*?</script>", "", page, flags=re.DOTALL)
    assert len(own) < len(page) - 500_000  # the vendored scripts were cut out
    assert not re.findall(r"https?://", own)
    assert "default-src 'none'" in own
    assert set(re.findall(r'(?:src|href)="(data:|#|[^"]{0,12})', own)) <= {"#", "data:"}


def test_page_is_deterministic_and_names_no_user(mixed_sweep: Path, page: str) -> None:
    assert html_page(scrub_rows(collect(mixed_sweep))) == page
    own = page[: page.index("<script>!function")]
    assert "somebody" not in own and "/home" not in own


def test_download_holds_every_trial(page: str) -> None:
    data = re.search(r"data:application/gzip;base64,([^\"]+)", page)
    assert data is not None
    lines = gzip.decompress(base64.b64decode(data[1])).decode().splitlines()
    assert len(lines) == 120 and json.loads(lines[0])["schema_version"] == 1


def test_failures_name_rank_phase_and_log(page: str) -> None:
    assert "rank 1, backward, step 7" in page and "/2/log/1.err" in page and "2.00 GiB, 512 MiB free" in page


def test_500_cells_stay_below_2_mb(tmp_path: Path) -> None:
    varied = {
        "precision": ["fp32", "bf16"], "attention": ["sdpa", "eager"], "checkpointing": ["none", "full", "selective"],
        "gpus": [1, 2, 4, 8, 16, 32, 64], "micro_batch_size": [1, 2, 4], "loss": ["plain", "chunked"],
    }  # fmt: skip
    assert len(list(itertools.product(*varied.values()))) == 504

    def fate(axes: Mapping[str, Any], trial: int) -> tuple[OutcomeName, str]:
        return ("oom", "CUDA out of memory") if axes["gpus"] == 1 and axes["precision"] == "fp32" else ("ok", "")

    folder = write_sweep(tmp_path, varied, fate=fate, num_steps=20)
    started = time.perf_counter()
    size = len(html_page(scrub_rows(collect(folder))).encode())
    assert size <= 2_000_000, size
    assert time.perf_counter() - started < 60


def test_a_diverged_loss_does_not_break_the_json(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, {"gpus": [1, 2]}, targets=Targets(throughput=AtLeast(at_least=1.5)))
    place = SweepPaths(folder).trial(collect(folder).cells[0].cell_id, 0)
    text = place.steps.read_text().splitlines()
    text[3] = re.sub(r'"loss": [0-9.]+', '"loss": NaN', text[3])
    place.steps.write_text("\n".join(text) + "\n")
    page = html_page(collect(folder))
    specs = re.search(r'id="chart-specs">(.*?)</script>', page, re.DOTALL)
    assert specs is not None and "NaN" not in specs[1]
    assert set(json.loads(specs[1])) == {"pareto", "effects", "split", "kernels", "memory", "loss", "accuracy"}


def test_markup_in_names_stays_text(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, {"gpus": [1, 2]})
    paths = SweepPaths(folder)
    evil = {"name": "<img src=x onerror=alert(2)>", "matrix_text": "</pre><script>alert(3)</script>"}
    write_document(paths.sweep, Sweep.model_validate_json(paths.sweep.read_text()).model_copy(update=evil))
    page = html_page(collect(folder))
    assert "<img" not in page and "<script>alert" not in page


def test_command_writes_everything_and_checks(mixed_sweep: Path, tmp_path: Path, capsys: Any) -> None:
    runs, out = mixed_sweep.parent, tmp_path / "reports"
    assert report("mixed", runs=runs, out=out, as_json=True, publish_into=tmp_path / "results", check=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"]["targets_met"] is True and document["ledger"]["planned"] == 48
    names = {Path(path).name for path in document["files"]}
    assert names >= {"report.html", "summary.csv", "table.md", "mixed"}
    assert all(Path(path).exists() for path in document["files"])


def test_pictures_are_drawn(mixed_sweep: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert report(None, runs=mixed_sweep.parent, out=tmp_path, formats=["png", "svg"]) == 0
    assert (tmp_path / "mixed" / "pareto.png").read_bytes()[1:4] == b"PNG"
    assert "<svg" in (tmp_path / "mixed" / "effects.svg").read_text()


def test_check_fails_on_a_missed_target_only_when_asked(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"precision": ["fp32", "bf16"]}, name="slow", trials=2)
    assert report("slow", runs=tmp_path, out=tmp_path / "o", formats=["csv"]) == 0
    assert report("slow", runs=tmp_path, out=tmp_path / "o", formats=["csv"], check=True) == 4


def test_user_errors_name_what_there_is(mixed_sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no sweep 'mixd'; one of: mixed; did you mean 'mixed'"):
        report("mixd", runs=mixed_sweep.parent, out=tmp_path)
    with pytest.raises(InvalidInput, match=r"unknown format 'htm'.*did you mean 'html'"):
        report("mixed", runs=mixed_sweep.parent, out=tmp_path, formats=["htm"])


def test_report_never_imports_torch() -> None:
    code = "import sys, egobench.report.command; assert not {'torch', 'matplotlib', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_page_of_two_workloads_compares_within_each(tmp_path: Path) -> None:
    varied = {"workload": ["tiny", "big", "bare"], "precision": ["fp32", "bf16"], "gpus": [1, 8]}
    page = html_page(collect(write_sweep(tmp_path, varied)))
    assert page.count('class="baseline"') == 2
    header = page[: page.index("<main>")]
    assert header.count("<code>tiny-fp32-1-") == header.count("<code>big-fp32-1-") == 1
    assert header.count("Not compared, for want of a baseline: bare.") == 2
    assert page.count('data-value="">not compared</td>') == 4
    text = re.search(r'id="chart-specs">(.*?)</script>', page, re.DOTALL)
    assert text is not None
    layers = json.loads(text[1])["pareto"]["layer"]
    lines = [
        value["text"] for layer in layers for value in layer.get("data", {"values": []})["values"] if "text" in value
    ]
    wanted = ("throughput >= 2x baseline", "peak memory <= 0.5x baseline")
    assert lines == [f"target: {what} of {name}" for name in ("tiny", "big") for what in wanted]
    points = json.loads(text[1])["pareto"]["data"]["values"]
    assert {one["workload"] for one in points if one["kind"] == "baseline"} == {"tiny", "big"}


def test_workloads_take_turns_in_the_charts(tmp_path: Path) -> None:
    varied = {"workload": ["tiny", "big"], "precision": ["fp32", "bf16"], "gpus": [1, 2, 4, 8]}
    rows = collect(write_sweep(tmp_path, varied))
    chosen = featured(rows, decide(rows), 6)
    assert [cell.workload for cell in chosen] == ["tiny"] * 3 + ["big"] * 3
    assert all(base in chosen for base in rows.baselines)
