"""Where a sweep runs changes no loss: the shipped quickstart over two nodes against the same on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab import Cluster
from tests.cluster.sites import ROOT, SlurmSites

pytestmark = pytest.mark.slurm


def sweep(matrix: Path, runs: Path, cluster: Cluster, *more: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Run a sweep to its end and return the outcome of each trial."""
    command = [sys.executable, "-m", "egobench", "sweep", str(matrix), "--runs", str(runs), *more]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "HF_"))} | cluster.env
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = [json.loads(path.read_text()) for path in runs.glob("*/*/*/outcome.json")]
    return {(one["cell_id"], one["trial"]): one for one in outcomes}


def losses(folder: Path) -> dict[str, list[float]]:
    """Return the loss of every step of every trial below a sweep's folder."""
    return {
        str(path.parent.relative_to(folder)): [json.loads(line)["loss"] for line in path.read_text().splitlines()]
        for path in folder.glob("*/*/steps.jsonl")
    }


def hosts(folder: Path) -> set[tuple[str, ...]]:
    return {tuple(json.loads(path.read_text())["nodes"]) for path in folder.glob("allocations/*/starts/*.json")}


@pytest.mark.timeout(600)
def test_four_ranks_on_two_nodes_take_the_steps_of_four_on_one(
    cluster: Cluster, slurm_sites: SlurmSites, tmp_path: Path
) -> None:
    slurm_sites.write("two-by-two", standin=False, gpus_per_node=2)
    slurm_sites.write("one-by-four", standin=False, gpus_per_node=4)
    matrix = slurm_sites.matrix(site="two-by-two", gpus=(4,), trials=1, steps=4)
    spread = sweep(matrix, tmp_path / "spread", cluster)
    together = sweep(matrix, tmp_path / "together", cluster, "--site", "one-by-four")
    assert spread.keys() == together.keys() and len(spread) == 2
    assert losses(tmp_path / "spread" / "small") == losses(tmp_path / "together" / "small")
    assert hosts(tmp_path / "spread" / "small") == {("n1", "n2")}
    assert {len(nodes) for nodes in hosts(tmp_path / "together" / "small")} == {1}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_quickstart_on_two_nodes_has_the_numbers_of_the_local_run(
    cluster: Cluster, slurm_sites: SlurmSites, tmp_path: Path
) -> None:
    # One rank a node: every trial of two ranks is spread over both, and none shares the machine with another.
    site = slurm_sites.write(
        "one-by-one", standin=False, gpus_per_node=1, max_gpus=2, time_limit_min=30, pack_min=15, memory_gib_per_node=12
    )
    quickstart = ROOT / "benchmarks" / "quickstart.yaml"
    there = sweep(quickstart, tmp_path / "there", cluster, "--site", str(site))
    # As many threads as there: how many share a sum decides its last bits.
    machine = tmp_path / "machine.yaml"
    machine.write_text("why: this machine\nlauncher: local\ndevice: cpu\ngpus_per_node: 8\nthreads_per_rank: 1\n")
    here = sweep(quickstart, tmp_path / "here", cluster, "--site", str(machine))
    assert there.keys() == here.keys() and len(there) >= 36
    assert losses(tmp_path / "there" / "quickstart") == losses(tmp_path / "here" / "quickstart")
    assert ("n1", "n2") in hosts(tmp_path / "there" / "quickstart")
    for trial, outcome in here.items():
        answers = [one["measures"]["after"] | {"eval_time_s": None} for one in (there[trial], outcome)]
        assert answers[0] == answers[1]
    ratios = sorted(
        there[trial]["measures"]["tokens_per_s"] / one["measures"]["tokens_per_s"] for trial, one in here.items()
    )
    assert 0.1 < ratios[len(ratios) // 2] < 10.0, ratios  # the machine is shared; near 1 where it is quiet
