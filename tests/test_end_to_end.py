"""The shipped sweeps, run as a user runs them: minutes each, so only `.ci/run` does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
EGOTHINK = ROOT.parent / "shared" / "data" / "egothink" / "data"


def egobench(*arguments: str, cwd: Path = ROOT, timeout_s: float = 1500) -> subprocess.CompletedProcess[str]:
    # As on a login node: nothing of pytest's environment, and no hub.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "HF_"))}
    command = [sys.executable, "-m", "egobench", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)


def swept(matrix: str, runs: Path) -> dict[str, Any]:
    done = egobench("sweep", matrix, "--runs", str(runs), "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def measures(runs: Path, name: str) -> list[dict[str, Any]]:
    outcomes = [json.loads(path.read_text()) for path in sorted((runs / name).glob("*/*/outcome.json"))]
    assert outcomes and all(outcome["outcome"] == "ok" for outcome in outcomes)
    return [outcome["measures"] for outcome in outcomes]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_quickstart_closes_its_ledger_and_lifts_em_by_25_points(tmp_path: Path) -> None:
    document = swept("benchmarks/quickstart.yaml", tmp_path)
    ledger = document["ledger"]
    assert ledger["planned"] == sum(count for name, count in ledger.items() if name != "planned") >= 36
    assert ledger["ok"] == ledger["planned"]
    found = measures(tmp_path, "quickstart")
    lifts = [one["after"]["em"] - one["before"]["em"] for one in found]
    assert sum(lifts) / len(lifts) >= 25, lifts

    again = egobench("sweep", "benchmarks/quickstart.yaml", "--runs", str(tmp_path))
    assert again.returncode == 0 and len(measures(tmp_path, "quickstart")) == len(found)

    done = egobench(
        "report", "quickstart", "--runs", str(tmp_path), "--out", str(tmp_path / "reports"),
        "--publish", str(tmp_path / "published"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = tmp_path / "reports" / "quickstart" / "report.html"
    assert page.stat().st_size < 2 << 20
    assert egobench("verify", str(tmp_path / "published")).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not EGOTHINK.exists(), reason="the EgoThink pictures (../shared/data/egothink) are not here")
def test_egothink_runs_on_real_pictures(tmp_path: Path) -> None:
    document = swept("benchmarks/egothink.yaml", tmp_path)
    assert document["ledger"]["ok"] == document["ledger"]["planned"] >= 16
    for one in measures(tmp_path, "egothink"):
        assert one["image_tokens"] == one["num_steady_steps"] * 4 * 256, "four pictures of 256 tokens an update"
    assert egobench("report", "egothink", "--runs", str(tmp_path), "--out", str(tmp_path)).returncode == 0
