"""A small matrix, and the processes that run it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from egobench.launch.watch.reader import read_sweep
from egobench.launch.watch.state import SweepState

ROOT = Path(__file__).parent.parent.parent
MATRIX = """
name: small
why: a test
site: local
workloads:
  w:
    why: small
    model: {{name: egotiny, weights: random}}
    data: {{format: egoworld, domain: home, num_train: 8, num_validation: 8}}
    recipe: {{num_steps: {steps}, learning_rate: 0.001}}
    image_px: 64
axes:
  strategy: [ddp]
  gpus: [2]
  attention: [{attentions}]
{more}
trials: {trials}
"""


def write_matrix(
    folder: Path, *, trials: int = 2, steps: int = 5, attentions: str = "sdpa, eager", more: str = ""
) -> Path:
    path = folder / "matrix.yaml"
    path.write_text(MATRIX.format(trials=trials, steps=steps, attentions=attentions, more=more))
    return path


def start_sweep(folder: Path, **options: Any) -> subprocess.Popen[str]:
    options = {"matrix": str(folder / "matrix.yaml"), "runs": str(folder / "runs")} | options
    command = [sys.executable, "-m", "tests.launch.driver", json.dumps(options)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run_sweep(folder: Path, timeout_s: float = 150, **options: Any) -> tuple[int, str, str]:
    process = start_sweep(folder, **options)
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


def state_of(folder: Path) -> SweepState:
    return read_sweep(folder / "runs" / "small")


def wait_for(what: Callable[[], Any], timeout_s: float = 90) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("it never happened")


def running_pids(folder: Path) -> list[int]:
    """Ranks of the trial that runs now, once they are in their steps."""
    path = folder / "runs" / "small" / "sweep.json"
    if not path.exists():
        return []
    running = [trial for trial in state_of(folder).trials if trial.outcome == "running" and trial.step >= 1]
    return [pulse.pid for trial in running for pulse in trial.pulses]
