from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest
from synthetic import SPEED, write_sweep

from egobench.records.outcome import OutcomeName
from egobench.report.collect import collect
from egobench.report.command import verify
from egobench.report.markdown import BEGIN, END, markdown_page
from egobench.report.metrics import MEMORY_PARTS
from egobench.report.publish import publish, read_published
from egobench.report.scrub import scrub_rows
from egobench.report.tables import csv_header, summary_csv
from egobench.report.verify import verify_folders
from egobench.spec.axes import AXES


@pytest.fixture
def published(mixed_sweep: Path, tmp_path: Path) -> Path:
    return publish(mixed_sweep, tmp_path / "results")


def test_csv_has_every_cell_and_numbers_to_compute_with(mixed_sweep: Path) -> None:
    rows = collect(mixed_sweep)
    lines = list(csv.DictReader(io.StringIO(summary_csv(rows))))
    assert tuple(lines[0]) == csv_header(rows)
    known = [name for name in AXES if name in rows.cells[0].axes]
    assert csv_header(rows)[: len(known) + 2] == ("cell_id", *known, "metric")
    assert {line["cell_id"] for line in lines} == {cell.cell_id for cell in rows.cells}
    cell = next(cell for cell in rows.cells if cell.outcome == "ok")
    line = next(line for line in lines if line["cell_id"] == cell.cell_id and line["metric"] == "tokens_per_s")
    values = sorted(cell.values("tokens_per_s").values())
    assert [float(line[key]) for key in ("low", "value", "high")] == pytest.approx(values)
    assert (line["num_trials"], line["higher_is_better"], line["outcome"], line["unit"]) == ("3", "true", "ok", "1/s")
    failed = [line for line in lines if line["outcome"] == "incompatible"]
    assert len(failed) == 8 and {line["metric"] for line in failed} == {"num_ok_trials"}


def test_markdown_reads_as_promised(published: Path) -> None:
    text = (published / "table.md").read_text()
    assert published.name == "mixed" and published.parent.name == "synthetic-gpu-80gb"
    assert "Cells: 48 planned = 34 ok + 2 oom + 4 hang + 8 incompatible." in text
    assert "**Held fixed: workload tiny," in text and "2026-" in text and "Commit 0123456789" in text
    assert "Peak allocated (GiB)" in text
    assert "oom[^1]" in text and "[^1]: trial 1 of 3: CUDA out of memory &lt;script>" in text
    assert "8 x SYNTHETIC GPU 80GB" in text and "torch 2.13.0" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    best = [line for line in table if "**" in line]
    assert best and all(line.count(" | ") == table[0].count(" | ") for line in table[:48])
    assert "--:" in table[1]


def test_parts_of_peak_and_step_add_up_where_they_are_known(mixed_sweep: Path, tmp_path: Path) -> None:
    rows = collect(mixed_sweep)
    text = markdown_page(rows)
    assert "MFU (%)" in text and "**What the peak consists of" in text and "Optimizer states (GiB)" in text
    assert "**What a profiled step consists of" in text and "Attention (ms)" in text
    cell = next(cell for cell in rows.cells if cell.comparable)
    for trial, peak in cell.values("peak_memory_bytes").items():
        assert sum(cell.values(name)[trial] for name in MEMORY_PARTS) == peak
    plain = markdown_page(collect(write_sweep(tmp_path, {"gpus": [1, 2]}, device="cpu")))
    assert "consists of" not in plain and "MFU" not in plain


def test_memory_of_a_cpu_site_is_named_so(tmp_path: Path) -> None:
    text = markdown_page(collect(write_sweep(tmp_path, {"gpus": [1, 2]}, device="cpu")))
    assert "Peak rss growth" not in text and "Peak RSS growth (GiB)" in text and "allocated" not in text


def test_published_records_give_the_same_tables(mixed_sweep: Path, published: Path) -> None:
    fresh, again = scrub_rows(collect(mixed_sweep)), read_published(published)
    assert summary_csv(fresh) == summary_csv(again) == (published / "summary.csv").read_text()
    assert markdown_page(fresh) == markdown_page(again) == (published / "table.md").read_text()
    assert fresh.trial_ledger == again.trial_ledger


def test_verify_finds_an_edited_number(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify([published.parent.parent]) == 0
    for name, old, new in (("summary.csv", ",true,ok,1", ",true,ok,2"), ("table.md", "34 ok", "36 ok")):
        path = published / name
        text = path.read_text()
        path.write_text(text.replace(old, new, 1))
        assert verify([published]) == 4
        assert f"DIFFERS  {path}  line " in capsys.readouterr().out
        path.write_text(text)
    assert verify([published]) == 0


def test_verify_finds_missing_and_doubled_records(published: Path) -> None:
    records = published / "records.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(lines[1:]))
    assert "do not add up" in verify_folders([published])[0].difference
    records.write_text("".join([lines[0], *lines]))
    assert "do not add up" in verify_folders([published])[0].difference
    records.write_text("".join(["{}\n", *lines[1:]]))
    assert "records.jsonl:1" in verify_folders([published])[0].difference
    records.unlink()
    assert verify([published]) == 4  # a table without its records


def test_prose_around_the_markers_stays(mixed_sweep: Path, published: Path) -> None:
    table = published / "table.md"
    block = table.read_text().split("\n", 2)[2]
    assert block.startswith(BEGIN) and block.endswith(f"{END}\n")
    table.write_text(f"# By hand\n\n{block}\nSeen in the lab.\n")
    assert verify([published]) == 0
    assert publish(mixed_sweep, published.parent.parent) == published
    assert table.read_text() == f"# By hand\n\n{block}\nSeen in the lab.\n"


def test_published_files_hold_no_names_or_paths(published: Path) -> None:
    for path in published.iterdir():
        text = path.read_text()
        for secret in ("somebody", "/home", "/scratch", "GPU-secret", "job-4711", "SLURM"):
            assert secret not in text, (path.name, secret)


def test_a_sweep_that_never_ran_has_a_table(tmp_path: Path) -> None:
    def waiting(axes: object, trial: int) -> tuple[OutcomeName, str]:
        return "pending", ""

    folder = write_sweep(tmp_path, {"gpus": [1, 2]}, fate=waiting)
    text = markdown_page(collect(folder))
    assert "No trial has run yet" in text and "2 planned = 2 pending" in text
    out = publish(folder, tmp_path / "results")
    assert verify([out]) == 0
    shutil.rmtree(out)
    assert verify([tmp_path / "results"]) == 0


def rows_of(text: str, first: str) -> list[list[str]]:
    """Split the lines of the table of cells whose first axis has this value."""
    table = text.partition("consists of")[0].splitlines()
    lines = [line.strip("| ").split(" | ") for line in table if line.startswith(f"| {first} |")]
    return [[part.strip() for part in line] for line in lines]


def test_ratios_stay_within_a_workload(tmp_path: Path) -> None:
    varied = {"workload": ["tiny", "big"], "precision": ["fp32", "bf16"]}
    text = markdown_page(collect(write_sweep(tmp_path, varied)))
    tiny, big = rows_of(text, "tiny"), rows_of(text, "big")
    assert [line[3] for line in (tiny[0], big[0])] == ["1 (baseline)"] * 2
    for line in (tiny[1], big[1]):  # bf16 over the fp32 of the same workload, whatever the other's speed
        assert float(line[3].split()[0]) == pytest.approx(SPEED["bf16"], rel=0.05)
        assert line[2].startswith("**") and line[5].startswith("**")  # the best of its workload
    assert "of the same workload, `tiny-" in text and "Not compared" not in text


def test_a_workload_without_baseline_is_told(tmp_path: Path) -> None:
    varied = {"workload": ["tiny", "big"], "precision": ["fp32", "bf16"]}
    text = markdown_page(collect(write_sweep(tmp_path, varied, compared=("tiny",))))
    assert [line[3] for line in rows_of(text, "big")] == ["not compared"] * 2
    assert text.count("Not compared, for want of a baseline: big.") == 2  # in the verdict and above the table
