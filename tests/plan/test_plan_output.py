"""What `egobench plan` prints: one JSON document, CSV, Markdown, a summary that sums; and `--only`."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from egobench.errors import InvalidInput
from egobench.plan.cells import expand
from egobench.plan.command import plan_command, validate
from egobench.plan.expand import plan
from egobench.plan.outlook import COLUMNS
from egobench.plan.select import matches, parse_only
from egobench.plan.tally import tally
from egobench.records.outcome import OUTCOMES
from egobench.spec.axes import AXES
from egobench.spec.matrix import load_matrix

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "benchmarks" / "quickstart.yaml"
HEADLINE = ROOT / "matrix.yaml"


def printed(matrix: Path, form: Any = "summary", only: str | None = None) -> str:
    stream = io.StringIO()
    assert plan_command(matrix, form, only, stream) == 0
    return stream.getvalue()


def test_json_is_the_sweep() -> None:
    document = json.loads(printed(HEADLINE, "json"))
    sweep = plan(load_matrix(HEADLINE))
    assert document["schema_version"] == 1
    assert document["baselines"] == sweep.baselines != {}
    assert [cell["cell_id"] for cell in document["cells"]] == [cell.cell_id for cell in sweep.cells]
    assert [cell["axes"] for cell in document["cells"]] == [cell.axes for cell in sweep.cells]
    assert [cell["because"] for cell in document["cells"]] == [cell.because for cell in sweep.cells]
    ledger = document["ledger"]
    assert ledger["planned"] == len(sweep.cells) == sum(ledger[name] for name in OUTCOMES)
    assert sum(row["num_cells"] for row in document["dropped"]) == ledger["incompatible"]
    assert sum(row["num_cells"] for row in document["requests"]) == ledger["pending"]


def test_json_of_nothing_is_whole() -> None:
    document = json.loads(printed(QUICKSTART, "json", "gpus=7"))
    assert document["cells"] == []
    assert document["ledger"]["planned"] == 0
    assert "No cell runs." in printed(QUICKSTART, "summary", "gpus=7")


def test_csv_and_markdown() -> None:
    rows = list(csv.DictReader(io.StringIO(printed(HEADLINE, "csv"))))
    sweep = plan(load_matrix(HEADLINE))
    assert [row["cell_id"] for row in rows] == [cell.cell_id for cell in sweep.cells]
    assert list(rows[0]) == ["cell_id", "outcome", "because", *AXES, "parent", "needs", *COLUMNS]
    table = printed(QUICKSTART, "md").splitlines()
    assert len(table) == 2 + len(plan(load_matrix(QUICKSTART)).cells)
    assert len({line.count("|") for line in table}) == 1


def test_summary_sums(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(HEADLINE)
    planned, incompatible, pruned, pending = re.search(
        r"ledger: (\d+) planned = (\d+) incompatible \+ (\d+) predicted_oom \+ (\d+) pending", text
    ).groups()  # type: ignore[union-attr]
    assert int(planned) == int(incompatible) + int(pruned) + int(pending)
    reasons = [int(count.replace(",", "")) for count in re.findall(r"^ +([\d,]+)  \S", text.split("Dropped:")[1], re.M)]
    assert sum(reasons) == int(incompatible)
    assert "excluded at matrix.yaml:" in text
    assert "(baseline)" in text
    assert "does not exist" in capsys.readouterr().err


def two_by_two() -> dict[str, Any]:
    """Return a matrix of eight cells on workloads of one GPU."""
    suite = yaml.safe_load((ROOT / "benchmarks" / "gpu_suite.yaml").read_text())
    axes = {"precision": ["fp32", "bf16"], "attention": ["eager", "sdpa"], "checkpointing": ["none", "full"]}
    kept = {key: suite[key] for key in ("name", "why", "workloads")}
    return kept | {"axes": {"workload": ["internvl3-2b-question"], **axes}}


def test_every_baseline_has_a_star(tmp_path: Path) -> None:
    matrix = two_by_two() | {"site": "local"}
    matrix["axes"]["workload"] = list(matrix["workloads"])[1:]
    matrix["baseline"] = {"precision": "fp32", "attention": "eager", "checkpointing": "none"}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(matrix, sort_keys=False))
    baselines = json.loads(printed(tmp_path / "m.yaml", "json"))["baselines"]
    assert list(baselines) == ["internvl3-2b-mfu", "internvl3-8b-lora"]
    starred = [line for line in printed(tmp_path / "m.yaml").splitlines() if line.startswith("*")]
    assert [line.split()[-2:] for line in starred] == [[cell_id, "(baseline)"] for cell_id in baselines.values()]


def test_only_selects_and_never_changes_ids() -> None:
    every = {cell["cell_id"] for cell in json.loads(printed(QUICKSTART, "json"))["cells"]}
    some = [cell for cell in json.loads(printed(QUICKSTART, "json", "strategy=ddp, precision=fp32|bf16"))["cells"]]
    assert some
    assert {cell["cell_id"] for cell in some} < every
    assert {cell["axes"]["strategy"] for cell in some} == {"ddp"}


def test_parse_only() -> None:
    where = parse_only("strategy=ddp|fsdp,gpus=4,learning_rate=1e-3")
    assert where == {"strategy": ("ddp", "fsdp"), "gpus": (4,), "learning_rate": (0.001,)}
    assert matches(where, {"strategy": "fsdp", "gpus": 4, "learning_rate": 0.001})
    assert not matches(where, {"strategy": "fsdp", "gpus": 2, "learning_rate": 0.001})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("strategie=ddp", "'strategie' is not an axis; allowed: workload, "),
        ("strategie=ddp", "did you mean 'strategy'?"),
        ("strategy=dpp", "did you mean 'ddp'?"),
        ("gpus=four", "'four' is not a gpus; expected a number"),
        ("strategy", "'strategy' is no selection; write axis=value"),
        ("", "'' is no selection"),
        ("gpus=1,gpus=2", "'gpus' is written twice"),
        ("strategy=ddp|", "'' is not a strategy"),
    ],
)
def test_only_mistakes(text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_only(text)
    assert words in str(caught.value)


def test_requests_and_cost(tmp_path: Path) -> None:
    (tmp_path / "slurm_templates").mkdir()
    site = yaml.safe_load((ROOT / "slurm_templates" / "a100-80gb-2x4.yaml").read_text())
    (tmp_path / "slurm_templates" / "s.yaml").write_text(yaml.safe_dump({**site, "cost_per_gpu_hour": 2.5}))
    matrix = two_by_two() | {"site": "s"}
    matrix["zip"] = [{"strategy": ["single", "ddp", "ddp"], "gpus": [1, 4, 8]}]
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({**matrix, "trials": 2}))
    loaded = load_matrix(tmp_path / "m.yaml")
    requests = tally(expand(loaded).counts(), loaded.site, 2).requests
    shapes = [(one.nodes, one.gpus_per_node, one.num_cells, one.num_trials) for one in requests]
    assert shapes == [(1, 1, 8, 16), (1, 4, 8, 16), (2, 4, 8, 16)]
    assert [one.gpu_hours_at_most for one in requests] == [16, 64, 128]
    assert [one.cost_at_most for one in requests] == [40, 160, 320]
    assert "520 at the site's price" in printed(tmp_path / "m.yaml")


def test_validate_checks_the_baseline_too(tmp_path: Path) -> None:
    text = QUICKSTART.read_text().replace("baseline: {gpus: 1, ", "baseline: {gpus: 7, ")
    (tmp_path / "m.yaml").write_text(text)
    (tmp_path / "egotiny-workshop.yaml").write_text((ROOT / "benchmarks" / "egotiny-workshop.yaml").read_text())
    with pytest.raises(InvalidInput, match="baseline: selects no cell"):
        validate([tmp_path / "m.yaml"])
