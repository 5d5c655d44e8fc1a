"""A dry run shows the submissions to the letter, what they cost, and writes nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import yaml

from egobench.launch.command import sweep_command
from egobench.launch.dry_run import dry_run_document, print_dry_run
from egobench.launch.prepare import dry_packing
from egobench.launch.sweep import Wish, look_up
from tests.cluster.sites import SlurmSites


def prepared(folder: Path, **fields: Any) -> SlurmSites:
    sites = SlurmSites(folder, "")
    sites.write(standin=False, **({"expected_trial_min": 1.0, "trial_time_limit_s": 60} | fields))
    return sites


def test_each_array_and_the_totals(tmp_path: Path) -> None:
    sites = prepared(tmp_path, cost_per_gpu_hour=2.0, max_gpus=8, account="proj")
    todo = look_up(sites.matrix(gpus=(2, 8)), sites.runs, Wish())
    packing = dry_packing(todo, Wish())
    stream = io.StringIO()
    print_dry_run(packing, todo.sweep, todo.paths, stream)
    text = stream.getvalue()
    assert "# array 1: 1 node x 2 GPUs" in text and "# array 2: 2 nodes x 4 GPUs" in text
    assert text.count("#SBATCH --account=proj\n") == 2
    assert "#SBATCH --dependency='afterany:<array 1>'\n" in text  # 8 GPUs leave room for nothing beside
    assert "# arrays: 2, jobs: 2, trials: 8\n" in text
    assert "# GPU-hours: 0.667 expected, 1.67 at most\n" in text
    assert "# cost: 1.33 expected, 3.33 at most (2 a GPU-hour)\n" in text
    assert not sites.runs.exists()

    document = dry_run_document(packing, todo.sweep, todo.paths)
    json.dumps(document)
    assert [one["allocations"] for one in document["arrays"]] == [[1, 1], [2, 2]]
    assert all(one["script"] in text for one in document["arrays"])
    assert sum(len(draft) for one in document["arrays"] for draft in one["trials"]) == document["num_trials"] == 8
    assert (document["gpu_hours_at_most"], document["cost_at_most"]) == (1.667, 3.33)


def test_a_budget_is_kept(tmp_path: Path, capsys: Any) -> None:
    sites = prepared(tmp_path, max_trials_per_job=1)
    matrix = sites.matrix(gpus=(2,))
    assert sweep_command(matrix, runs=sites.runs, dry_run=True, budget_gpu_hours=0.5, as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["num_jobs"] == 3 and document["gpu_hours_at_most"] == 0.5
    assert len(document["later"]) == 1 and document["because"].startswith("the budget: 0.5 GPU-hours")


def test_a_full_queue_leaves_trials_for_later(tmp_path: Path, capsys: Any) -> None:
    sites = prepared(tmp_path, max_trials_per_job=1, max_submit_jobs=3)
    assert sweep_command(sites.matrix(gpus=(2,)), runs=sites.runs, dry_run=True) == 0
    text = capsys.readouterr().out
    assert "# trials left for later: 1 (the site takes 3 jobs at once (max_submit_jobs))" in text
    assert "# arrays: 1, jobs: 3, trials: 3" in text


def test_it_needs_no_slurm(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    sites = prepared(tmp_path)
    assert sweep_command(sites.matrix(), runs=sites.runs, dry_run=True) == 0
    assert "#SBATCH --array=0-0%1" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "slurm_templates" / "lab.yaml").read_text())["launcher"] == "slurm"
