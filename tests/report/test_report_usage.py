"""Where the GPU time went: sums, shares, folding, what was never recorded, and launches beyond the first."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from synthetic import write_allocation, write_attempt, write_sweep

from egobench.launch.watch.hours import used_gpu_hours
from egobench.records.allocation import Ended, Job
from egobench.records.outcome import OutcomeName
from egobench.records.queue import JobState, QueueView
from egobench.records.store import SweepPaths, TrialPaths, write_document
from egobench.report.collect import collect
from egobench.report.command import report, verify
from egobench.report.markdown import markdown_page
from egobench.report.page import html_page
from egobench.report.publish import publish, read_published
from egobench.report.rows import SweepRows
from egobench.report.scrub import scrub_rows
from egobench.report.usage import relaunches, usage_csv, usage_table

USEFUL = {"measured_s": 600.0, "warmup_s": 60.0, "evaluation_s": 40.0, "startup_s": 100.0, "lost_s": 150.0}
BY_ITSELF = Ended(exit_code=0, at=1.79e9 + 1000)


def by_slurm(at: float, elapsed_s: float | None = None) -> Ended:
    return Ended(exit_code=1, state="NODE_FAIL", elapsed_s=elapsed_s, at=at)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write_sweep(tmp_path, {"gpus": [1, 8]}, trials=2)


def trials_of(folder: Path) -> list[TrialPaths]:
    rows = collect(folder)
    return [SweepPaths(folder).trial(cell.cell_id, row.trial) for cell in rows.cells for row in cell.trials]


def lines_of(rows: SweepRows) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(usage_csv(rows))))


def table_of(text: str) -> list[list[str]]:
    found = text[text.index("time went.**") :].splitlines()
    return [[part.strip() for part in line.strip("|").split("|")] for line in found if line.startswith("|")]


def test_gpu_hours_and_shares_by_hand(sweep: Path) -> None:
    write_allocation(sweep, 1, [USEFUL | {"idle_s": 50.0}], num_nodes=2, gpus_per_node=4, ended=BY_ITSELF)
    write_allocation(sweep, 2, [USEFUL | {"idle_s": 50.0}, {"idle_s": 1000.0}], gpus_per_node=1)
    rows = collect(sweep)
    header, _, first, second, total = table_of(markdown_page(rows))
    assert header[:6] == ["allocation", "nodes x GPUs", "starts", "trials", "GPU-hours", "measured (%)"]
    assert first == ["1", "2 x 4", "1", "2", "2.22", "60.0", "6.0", "4.0", "10.0", "15.0", "5.0"]  # 8 x 1000 s
    assert second[:6] == ["2", "1 x 1", "2", "4", "0.556", "30.0"]  # 2000 s, half of them idle
    assert total == ["all", "", "3", "6", "2.78", "54.0", "5.4", "3.6", "9.0", "13.5", "14.5"]  # weighted by GPUs
    table = usage_table(rows)
    assert table is not None and sum(table.total.gpu_s.values()) == pytest.approx(10_000)
    assert table.summary == "2.78 GPU-hours in 2 allocations, 54.0 % of them in measured steps."
    assert (table.num_open, table.num_unstarted) == (1, 0)


def test_a_cpu_site_counts_ranks(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, {"gpus": [1, 2]}, device="cpu")
    write_allocation(folder, 1, [USEFUL], gpus_per_node=2)
    text, page = markdown_page(collect(folder)), html_page(collect(folder))
    assert "**Where the ranks' time went.**" in text and "rank-hours" in text and "GPU-hours" not in text
    assert "<h2>Where the ranks&#39; time went</h2>" in page and "GPU-hours" not in page


@pytest.mark.parametrize(
    ("ended", "ends_at", "unrecorded_s"),
    [
        (Ended(exit_code=0, at=1.79e9 + 1000), None, 50.0),  # its own word for when it was over
        (by_slurm(1.79e9 + 5000, elapsed_s=1300.0), None, 350.0),  # accounting knows; somebody asked much later
        (by_slurm(1.79e9 + 5000), 1.79e9 + 1200, 250.0),  # no accounting, but a time limit
        (by_slurm(1.79e9 + 1100), 1.79e9 + 1200, 150.0),
        (None, None, 0.0),  # it may still run
    ],
)
def test_what_nobody_recorded(sweep: Path, ended: Ended | None, ends_at: float | None, unrecorded_s: float) -> None:
    write_allocation(sweep, 1, [USEFUL], gpus_per_node=2, ended=ended, ends_at=ends_at)
    rows = collect(sweep)
    (line,) = lines_of(rows)
    assert float(line["unrecorded_s"]) == unrecorded_s and float(line["total_s"]) == 950 + unrecorded_s
    # The same hours as `egobench status` tells.
    assert float(line["total_s"]) * 2 / 3600 == pytest.approx(used_gpu_hours(SweepPaths(sweep)))
    assert ("Unrecorded: held by" in markdown_page(rows)) == (unrecorded_s > 0)
    assert line["has_ended"] == str(ended is not None).lower()


def test_accounting_of_the_queue_is_used(sweep: Path) -> None:
    paths = write_allocation(sweep, 1, [USEFUL], ended=Ended(exit_code=0, at=1.79e9 + 950))
    write_document(paths.job, Job(job_id="9", job_name="ours", submitted_at=0, submitted_by="", script="", log=""))
    for name, total_s in (("ours", 1010.0), ("another submission", 950.0)):
        state = JobState(
            job_id="9", job_name=name, state="COMPLETED", activity="over", elapsed_s=1010.0, source="sacct"
        )
        write_document(SweepPaths(sweep).queue, QueueView(asked_at=0.0, jobs={"9": state}))
        assert float(lines_of(collect(sweep))[0]["total_s"]) == total_s


def test_a_lost_trial_is_a_sign_of_life(sweep: Path) -> None:
    # A worker on this machine was killed: no last word, no accounting.
    write_allocation(sweep, 1, [USEFUL])
    write_attempt(trials_of(sweep)[0], 1, "node_fail", "its allocation vanished", ended_at=1.79e9 + 980)
    rows = collect(sweep)
    assert float(lines_of(rows)[0]["unrecorded_s"]) == 30.0
    assert "1 allocation has no end on record" in markdown_page(rows)


def test_a_start_that_left_no_word_counts(sweep: Path) -> None:
    write_allocation(sweep, 1, [{}], ended=by_slurm(1.79e9 + 100, elapsed_s=60.0))
    write_allocation(sweep, 2, [])  # waits in the queue
    (line,) = lines_of(collect(sweep))
    assert (line["num_starts"], line["num_trials"], line["total_s"], line["unrecorded_s"]) == ("1", "0", "60", "60")
    assert "1 allocation has no start on record" in markdown_page(collect(sweep))


def test_many_allocations_fold_to_the_least_useful(mixed_sweep: Path) -> None:
    rows = collect(mixed_sweep)
    table = usage_table(rows)
    assert table is not None and len(table.lines) == 10 and len(lines_of(rows)) == 14 == table.num_allocations
    wasted = [line.total_gpu_s - line.gpu_s["measured_s"] for line in table.lines]
    assert wasted == sorted(wasted, reverse=True) and table.lines[0].name == "14"
    shown = {line.name for line in table.lines}
    others = [line for line in lines_of(rows) if line["allocation"] not in shown]
    left = [(float(line["total_s"]) - float(line["measured_s"])) * float(line["num_gpus"]) for line in others]
    assert len(left) == 4 and max(left) <= min(wasted)
    everything = sum(float(line["total_s"]) * float(line["num_gpus"]) for line in lines_of(rows))
    assert table.total.total_gpu_s == pytest.approx(everything)
    assert "Listed are the 10 of 14 allocations" in markdown_page(rows)


def test_launches_beyond_the_first_say_why(sweep: Path) -> None:
    write_allocation(sweep, 1, [USEFUL])
    first, second, third, _ = trials_of(sweep)
    launches: Sequence[tuple[TrialPaths, int, OutcomeName]] = (
        (first, 1, "preempted"), (first, 2, "preempted"), (second, 1, "node_fail"),
    )  # fmt: skip
    for place, number, outcome in launches:
        write_attempt(place, number, outcome, f"rank 0, forward, step {number}: job 4711_{number} was taken away")
    write_attempt(third, 1, None)
    rows = scrub_rows(collect(sweep))
    again = relaunches(rows)
    assert again.summary == "3 of 4 trials were launched again: 4 launches beyond the first."
    assert again.reasons[0] == ("preempted", "the job was taken away", 2)
    text, page = markdown_page(rows), html_page(rows)
    assert "- launched again after preempted (2 x): the job was taken away" in text
    assert "an unknown end (1 x): nobody wrote how it ended" in text and "nobody wrote how it ended" in page
    assert page.count('<span class="tag o-preempted">preempted</span>') == 1


def test_a_running_relaunch_counts(sweep: Path) -> None:
    place = trials_of(sweep)[0]
    place.outcome.unlink()
    write_attempt(place, 1, "timeout", "time limit near")
    assert relaunches(collect(sweep)).num_launches == 1


def test_without_records_nothing_is_claimed(sweep: Path, tmp_path: Path) -> None:
    before = markdown_page(collect(sweep))
    write_allocation(sweep, 1, [], ended=BY_ITSELF)  # what egobench wrote before it kept the time
    rows = collect(sweep)
    assert markdown_page(rows) == before and "time went" not in before and usage_csv(rows) == ""
    page = html_page(rows)
    assert "No time is on record" in page and "No trial was launched a second time." in page
    assert "usage" not in json.loads(re.findall(r'id="chart-specs">(.*?)</script>', page, re.DOTALL)[0])
    published = publish(sweep, tmp_path / "results")
    assert {path.name for path in published.iterdir()} == {
        "records.jsonl", "sweep.json", "provenance.json", "summary.csv", "table.md",
    }  # fmt: skip
    assert "earlier" not in (published / "records.jsonl").read_text()


def test_published_usage_is_derived_again(mixed_sweep: Path, tmp_path: Path) -> None:
    published = publish(mixed_sweep, tmp_path / "results")
    fresh, again = scrub_rows(collect(mixed_sweep)), read_published(published)
    assert again.allocations == fresh.allocations and len(fresh.allocations) == 14
    assert usage_csv(fresh) == usage_csv(again) == (published / "usage.csv").read_text()
    assert verify([published]) == 0
    edits: Sequence[tuple[str, str, str]] = [
        ("allocations.json", '"measured_s": 850.0', '"measured_s": 950.0'),
        ("usage.csv", ",850,", ",860,"),
        ("table.md", "launched again after node_fail (1 x)", "launched again after node_fail (2 x)"),
        ("records.jsonl", '"outcome":"node_fail"', '"outcome":"preempted"'),
        ("allocations.json", '"schema_version"', "not JSON"),
    ]
    for name, old, new in edits:
        text = (published / name).read_text()
        assert old in text, (name, old)
        (published / name).write_text(text.replace(old, new, 1))
        assert verify([published]) == 4, (name, new)
        (published / name).write_text(text)
    for name in ("usage.csv", "allocations.json"):
        text = (published / name).read_text()
        (published / name).unlink()
        assert verify([published]) == 4, name
        (published / name).write_text(text)
    assert verify([published]) == 0


def test_publishing_again_without_usage_leaves_none_behind(sweep: Path, tmp_path: Path) -> None:
    paths = write_allocation(sweep, 1, [USEFUL])
    published = publish(sweep, tmp_path / "results")
    assert (published / "allocations.json").exists() and (published / "usage.csv").exists()
    paths.usage.unlink()
    paths.start(0).unlink()
    publish(sweep, tmp_path / "results")
    assert not (published / "allocations.json").exists() and not (published / "usage.csv").exists()
    assert verify([published]) == 0


def test_published_usage_names_nobody(mixed_sweep: Path, tmp_path: Path) -> None:
    published = publish(mixed_sweep, tmp_path / "results")
    for path in published.iterdir():
        assert not re.search(r"somebody|job 4711|\bpid\b", path.read_text()), path.name
    first = json.loads((published / "allocations.json").read_text())["allocations"][-1]["starts"][0]
    assert first["nodes"] == ["node1", "node2"]
    assert "the job on node1 lost a node" in (published / "table.md").read_text()


def test_page_shows_the_bar_and_the_table(mixed_sweep: Path) -> None:
    page = html_page(scrub_rows(collect(mixed_sweep)))
    spec = json.loads(re.findall(r'id="chart-specs">(.*?)</script>', page, re.DOTALL)[0])["usage"]
    values = spec["data"]["values"]
    for name in {one["allocation"] for one in values}:
        assert sum(one["share"] for one in values if one["allocation"] == name) == pytest.approx(100, abs=0.1)
    assert spec["encoding"]["y"]["scale"]["domain"][-1] == "all" and len(spec["encoding"]["y"]["sort"]) == 11
    section = page[page.index('<section id="usage">') : page.index('<section id="accuracy">')]
    assert section.count("<tr>") == 1 + 10 + 1 + 2  # head, allocations, all; head and reason of the relaunch
    data = re.search(r"data:text/csv;base64,([^\"]+)", section)
    assert data is not None and base64.b64decode(data[1]).decode().count("\n") == 15


def test_command_writes_usage_beside_the_summary(mixed_sweep: Path, sweep: Path, tmp_path: Path) -> None:
    report("mixed", runs=mixed_sweep.parent, out=tmp_path / "out", formats=["csv"])
    assert (tmp_path / "out" / "mixed" / "usage.csv").read_text() == usage_csv(collect(mixed_sweep))
    report(sweep.name, runs=sweep.parent, out=tmp_path / "out", formats=["csv"])
    assert not (tmp_path / "out" / sweep.name / "usage.csv").exists()
