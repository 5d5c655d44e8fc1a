"""A plan shows what is predicted, drops what cannot fit for certain, and stays quick."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import egobench.plan.foresight
from egobench.errors import InvalidInput
from egobench.plan.cells import expand
from egobench.plan.command import plan_command
from egobench.plan.expand import plan
from egobench.plan.outlook import COLUMNS
from egobench.plan.output import tally_of
from egobench.predict.answer import Memory
from egobench.predict.forecast import Forecaster, Looked
from egobench.records.sweep import Sweep
from egobench.spec.matrix import load_matrix
from tests.predict.cells import WORKLOAD

ROOT = Path(__file__).parents[2]
A100 = str(ROOT / "slurm_templates" / "a100-80gb-8.yaml")
MATRIX: dict[str, Any] = {
    "name": "foreseen",
    "why": "test",
    "workloads": {"w": WORKLOAD},
    "axes": {"strategy": ["ddp", "fsdp"], "precision": ["fp32", "bf16"], "gpus": [4]},
    "baseline": {"strategy": "fsdp", "precision": "fp32"},
    "trials": 3,
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "matrix.yaml"
    given = {key: value for key, value in {**MATRIX, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return path


def planned(folder: Path, site: str = A100, **changes: Any) -> Sweep:
    return plan(load_matrix(written(folder, **changes), site))


def printed(matrix: Path, form: Any = "summary", site: str = A100, only: str | None = None) -> str:
    stream = io.StringIO()
    assert plan_command(matrix, form, only, stream, site) == 0
    return stream.getvalue()


def test_what_cannot_fit_is_dropped_with_number_and_margin(tmp_path: Path) -> None:
    sweep = planned(tmp_path)
    outcomes = {(cell.axes["strategy"], cell.axes["precision"]): cell.outcome for cell in sweep.cells}
    assert outcomes["ddp", "fp32"] == "predicted_oom"  # 16 bytes x 7.9 billion parameters on each GPU
    assert outcomes["fsdp", "fp32"] == outcomes["fsdp", "bf16"] == "pending"
    (pruned,) = (cell for cell in sweep.cells if cell.axes["strategy"] == "ddp" and cell.axes["precision"] == "fp32")
    found = pruned.predicted
    assert found is not None and found.verdict == "predicted_oom"
    assert found.margin_bytes is not None and found.margin_bytes < -40 * 2**30
    assert pruned.because.startswith("predicted to use at least ")
    assert "more than the 79.4 GiB of the GPU; at the peak (optimizer): optimizer states 59.2 GiB" in pruned.because
    assert found.peak_phase == "optimizer" and "parameters" in found.peak_parts
    assert pruned not in sweep.runnable()
    assert Sweep.model_validate_json(sweep.model_dump_json()) == sweep


def test_what_runs_carries_its_prediction(tmp_path: Path) -> None:
    (cell,) = (
        cell for cell in planned(tmp_path).cells if cell.axes["strategy"] == "fsdp" and cell.axes["precision"] == "bf16"
    )
    found = cell.predicted
    assert found is not None and found.verdict == "fits" and not found.because
    assert found.predicted_low_bytes is not None and found.predicted_high_bytes is not None
    assert found.predicted_low_bytes <= found.predicted_high_bytes < (found.usable_bytes or 0)
    assert found.predicted_step_time_s and found.predicted_tokens_per_s
    assert found.predicted_trial_s is not None and found.predicted_trial_s > 300 * found.predicted_step_time_s
    assert "max_length" in found.assumed and "shipped" in found.constants


def test_nothing_is_pruned_that_short_samples_would_let_fit(tmp_path: Path) -> None:
    """Only what is certain: without lengths, max_length is an assumption, not a fact."""
    long = {**WORKLOAD, "recipe": {**WORKLOAD["recipe"], "max_length": 65536}, "defaults": {"micro_batch_size": 16}}
    axes = {"strategy": ["fsdp"], "gpus": [8], "precision": ["bf16"], "padding": ["dynamic", "max"]}
    dynamic, padded = planned(tmp_path, workloads={"w": long}, axes=axes, baseline=None).cells
    assert dynamic.predicted is not None and dynamic.predicted.verdict == "risky"
    assert dynamic.outcome == "pending"
    assert padded.outcome == "predicted_oom"
    measured = {**long, "lengths": {"mean": 60000, "longest": 65536}}
    dynamic, padded = planned(tmp_path, workloads={"w": measured}, axes=axes, baseline=None).cells
    assert dynamic.outcome == padded.outcome == "predicted_oom"
    assert dynamic.predicted is not None and dynamic.predicted.assumed == ""


def test_a_baseline_runs_whatever_is_predicted(tmp_path: Path) -> None:
    sweep = planned(tmp_path, baseline={"strategy": "ddp", "precision": "fp32"})
    (cell,) = (cell for cell in sweep.cells if cell.cell_id in sweep.baselines.values())
    assert cell.outcome == "pending" and cell.because == ""
    assert cell.predicted is not None and cell.predicted.verdict == "predicted_oom"


def test_children_of_what_cannot_fit_are_dropped_with_it(tmp_path: Path) -> None:
    depends = [{"where": {"strategy": "fsdp", "precision": "fp32"}, "parent": {"strategy": "ddp"}}]
    baseline = {"strategy": "fsdp", "precision": "bf16"}
    *_, child, _ = planned(tmp_path, depends=depends, baseline=baseline).cells
    assert (child.axes["strategy"], child.axes["precision"]) == ("fsdp", "fp32")
    assert child.outcome == "incompatible"
    assert child.because.startswith("its parent (strategy ddp) was dropped: predicted to use at least ")
    assert child.predicted is None


def test_the_lengths_of_samples_are_no_part_of_a_cell(tmp_path: Path) -> None:
    plain = [cell.cell_id for cell in planned(tmp_path).cells]
    measured = {**WORKLOAD, "lengths": {"mean": 300, "p90": 340, "longest": 420, "supervised": 5}}
    assert [cell.cell_id for cell in planned(tmp_path, workloads={"w": measured}).cells] == plain


def test_lengths_that_cannot_be(tmp_path: Path) -> None:
    wrong = {**WORKLOAD, "lengths": {"mean": 300, "p90": 200, "longest": 420}}
    with pytest.raises(InvalidInput, match="mean 300, p90 200, longest 420; allowed: mean <= p90 <= longest"):
        planned(tmp_path, workloads={"w": wrong})


def test_a_micro_batch_that_is_searched_for(tmp_path: Path) -> None:
    axes = {"strategy": ["fsdp"], "gpus": [4], "precision": ["bf16"], "micro_batch_size": ["max", 1]}
    largest, one = planned(tmp_path, axes=axes, baseline=None).cells
    assert largest.predicted is not None and one.predicted is not None
    assert largest.predicted.verdict == "fits"
    assert (largest.predicted.predicted_micro_batch_size or 0) > 1
    assert one.predicted.predicted_micro_batch_size is None
    assert (largest.predicted.predicted_tokens_per_s or 0) > (one.predicted.predicted_tokens_per_s or 0)


@pytest.mark.parametrize(
    ("site", "words"),
    [
        ("local", "trials run on a CPU"),
        ("launcher: local\ndevice: cuda\ngpus_per_node: 8\nwhy: x\n", "names no `gpu:`"),
    ],
)
def test_where_nothing_is_known_nothing_is_predicted(tmp_path: Path, site: str, words: str) -> None:
    if ":" in site:
        (tmp_path / "site.yaml").write_text(site)
        site = str(tmp_path / "site.yaml")
    sweep = planned(tmp_path, site)
    assert {cell.outcome for cell in sweep.cells} == {"pending"}
    for cell in sweep.cells:
        assert cell.predicted is not None and cell.predicted.verdict is None
        assert words in cell.predicted.because
    text = printed(written(tmp_path), site=site)
    assert f"Not predicted: 4 cells, because {'the site' if 'gpu' in words else 'trials'}" in text
    assert "predicted_verdict" not in printed(written(tmp_path), "md", site)


def test_variants_and_unknown_models_have_a_reason(tmp_path: Path) -> None:
    variants = [{"name": "torch", "kind": "as_trained"}]
    axes = {"strategy": ["fsdp"], "gpus": [4], "precision": ["bf16"]}
    trained, variant = planned(tmp_path, axes=axes, baseline=None, variants=variants).cells
    assert trained.predicted is not None and trained.predicted.verdict == "fits"
    assert variant.predicted is not None and variant.predicted.because == "variants are not predicted"
    gone = {**WORKLOAD, "model": {"path": "gone"}}
    (cell,) = planned(tmp_path, axes=axes, baseline=None, workloads={"w": gone}).cells
    assert cell.predicted is not None and "gone/config.json is not on this machine" in cell.predicted.because


def test_no_time_over_nodes_whose_network_nobody_knows(tmp_path: Path) -> None:
    site = yaml.safe_load((ROOT / "slurm_templates" / "a100-80gb-2x4.yaml").read_text())
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(site))
    axes = {"strategy": ["fsdp"], "gpus": [8], "precision": ["bf16"]}
    (cell,) = planned(tmp_path, str(tmp_path / "s.yaml"), axes=axes, baseline=None).cells
    assert cell.predicted is not None
    if site.get("network_gb_per_s") is None:
        assert cell.predicted.predicted_step_time_s is None and "network" in cell.predicted.no_time
        assert cell.predicted.verdict == "fits"
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**site, "network_gb_per_s": 25.0}))
    (cell,) = planned(tmp_path, str(tmp_path / "s.yaml"), axes=axes, baseline=None).cells
    assert cell.predicted is not None and cell.predicted.predicted_step_time_s


def test_columns(tmp_path: Path) -> None:
    path = written(tmp_path)
    rows = list(csv.DictReader(io.StringIO(printed(path, "csv"))))
    assert set(COLUMNS) < set(rows[0])
    pruned = next(row for row in rows if row["outcome"] == "predicted_oom")
    assert pruned["predicted_verdict"] == "predicted_oom" and int(pruned["predicted_margin_bytes"]) < 0
    assert pruned["predicted_gpu_hours"] == ""  # nothing is asked for it
    document = json.loads(printed(path, "json"))
    assert document["predicted"]["verdicts"] == {
        name: sum(row["predicted_verdict"] == name for row in rows) for name in ("fits", "risky", "predicted_oom")
    }
    runs = [cell for cell in document["cells"] if cell["outcome"] == "pending"]
    hours = sum(cell["predicted_gpu_hours"] for cell in runs)
    assert hours == pytest.approx(document["predicted"]["predicted_gpu_hours"], rel=1e-3)
    assert hours == pytest.approx(sum(one["predicted_gpu_hours"] for one in document["requests"]), rel=1e-3)
    for cell in runs:
        assert cell["predicted_gpu_hours"] == pytest.approx(3 * 4 * cell["predicted_trial_s"] / 3600, rel=1e-4)
    table = printed(path, "md").splitlines()
    assert table[0].endswith("| predicted_step_time | predicted_tokens_per_s | predicted_gpu_hours |")
    assert len({line.count("|") for line in table}) == 1


def test_cost(tmp_path: Path) -> None:
    site = yaml.safe_load(Path(A100).read_text()) | {"cost_per_gpu_hour": 2.0}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(site))
    document = json.loads(printed(written(tmp_path), "json", str(tmp_path / "s.yaml")))
    hours = document["predicted"]["predicted_gpu_hours"]
    assert document["predicted"]["predicted_cost"] == pytest.approx(2 * hours, abs=0.02)


def test_summary(tmp_path: Path) -> None:
    text = printed(written(tmp_path))
    assert "Predicted out of memory, not launched (`egobench sweep --canary 5%` tries some): " in text
    assert "Predicted with the shipped constants, not measured: " in text
    assert "GPU-hours" in text and "assumed: every sample is 512 tokens long" in text
    ledger = text.splitlines()[-1]
    assert "predicted_oom" in ledger and ledger.startswith("ledger: 4 planned = ")


def test_predictions_do_not_depend_on_what_is_shown(tmp_path: Path) -> None:
    path = written(tmp_path)
    every = {cell["cell_id"]: cell for cell in json.loads(printed(path, "json"))["cells"]}
    some = json.loads(printed(path, "json", only="strategy=ddp"))["cells"]
    assert len(some) == 2 and all(every[cell["cell_id"]] == cell for cell in some)


def test_points_that_predictions_cannot_tell_apart_are_predicted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, look = [], Forecaster.look

    def counted(self: Forecaster, axes: Any) -> Any:
        calls.append(axes)
        return look(self, axes)

    monkeypatch.setattr(Forecaster, "look", counted)
    axes = {**MATRIX["axes"], "learning_rate": [0.1, 0.2, 0.3], "num_steps": [10, 20]}
    expansion = expand(load_matrix(written(tmp_path, axes=axes, baseline=None), A100))
    assert sum(expansion.counts().values()) == 24
    list(expansion.cells())
    assert len(calls) == 4
    trials = {cell[2].trial_s for cell in expansion.cells() if not cell[2].because}
    assert len(trials) == 4  # of two cells that fit, each with two numbers of steps


def test_a_matrix_that_is_too_large_to_predict_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egobench.plan.foresight, "MOST_PREDICTED", 3)
    found = tally_of(expand(load_matrix(written(tmp_path), A100)), None).outlook
    assert sum(found.no_verdict.values()) == 4
    assert next(iter(found.no_verdict)).startswith("4 points differ in what predictions read, more than 3; ")


def test_a_hundred_thousand_points_stay_quick() -> None:
    """A tenth of benchmarks/plan_speed.py's second matrix, with room for a busy machine."""
    began = time.process_time()
    expansion = expand(load_matrix(ROOT / "benchmarks" / "hundred-thousand.yaml"))
    counts = tally_of(expansion, {"workload": ("internvl3-2b-egoqa",), "gpus": (4,)})
    assert counts.ledger["planned"] == 10_080
    assert sum(counts.outlook.verdicts.values()) > 3000
    assert time.process_time() - began < 10


@pytest.mark.parametrize(("share", "verdict"), [(0.9, "fits"), (1.02, "risky"), (1.06, "predicted_oom")])
def test_a_verdict_needs_a_margin(share: float, verdict: str) -> None:
    least = Memory(70e9 * share, 70e9 * share, 70e9 * share, 70e9, tuple)
    setting: Any = None
    assert Looked(setting, least, least, None).verdict == verdict
