"""What a sweep of 5,000 trials costs the login node of a real Slurm: submission, `status`, and calls of the scheduler.

    python benchmarks/submission.py [--trials 5000] [--watch-s 120]

Brings up the test cluster with its nodes drained, so that every job stays in the queue; submits with
`egobench sweep --detach`, then watches for a while. Times are of whole processes, beside that of a Python that does
nothing; calls of squeue, sacct and sbatch are counted by wrappers that come first on PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.cluster.lab import Cluster  # noqa: E402
from tests.cluster.sites import SlurmSites  # noqa: E402

COMMANDS = ("squeue", "sacct", "sbatch", "scontrol")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--watch-s", type=float, default=120)
    given = parser.parse_args()
    cluster = Cluster.up()
    try:
        with cluster.active(), tempfile.TemporaryDirectory() as folder:
            cluster.run("scontrol", "update", "nodename=ALL", "state=drain", "reason=benchmark")
            measure(Path(folder), given.trials, given.watch_s)
    finally:
        cluster.down()
    return 0


def measure(folder: Path, num_trials: int, watch_s: float) -> None:
    write_matrix(folder, num_trials)
    calls = count_calls(folder)
    env = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    egobench = [sys.executable, "-m", "egobench"]
    floor_s, _ = timed([sys.executable, "-c", "pass"], folder, env)
    print(f"python that does nothing  {floor_s:6.2f} s")
    wall_s, cpu_s = timed([*egobench, "sweep", "big.yaml", "--detach"], folder, env)
    trials, jobs = (len(list((folder / "runs" / "big").glob(p))) for p in ("*/*/trial.json", "allocations/*/job.json"))
    print(f"sweep --detach            {wall_s:6.2f} s wall, {cpu_s:.2f} s CPU: {trials:,} trials in {jobs} jobs")
    for arguments in (["status"], ["status", "--json"]):
        wall_s, _ = timed([*egobench, *arguments], folder, env)
        print(f"{' '.join(arguments):25} {wall_s:6.2f} s wall")
    before = calls()
    watch = subprocess.Popen([*egobench, "status", "--watch"], cwd=folder, env=env, stdout=subprocess.DEVNULL)
    sweep = subprocess.Popen([*egobench, "sweep", "big.yaml"], cwd=folder, env=env, stderr=subprocess.DEVNULL)
    time.sleep(watch_s)
    for process in (watch, sweep):
        process.terminate()
        process.wait()
    made = {name: calls()[name] - before[name] for name in COMMANDS}
    rate = 10 * sum(made.values()) / watch_s
    print(f"calls in {watch_s:.0f} s of watching by two commands: {made}, {rate:.2f} per 10 s")


def write_matrix(folder: Path, num_trials: int) -> None:
    sites = SlurmSites(folder, "")
    sites.write(poll_every_s=10, time_limit_min=120, pack_min=60, expected_trial_min=10)
    matrix = yaml.safe_load(sites.matrix("big", trials=3).read_text())
    rates = [round(1e-5 * (1 + index / 1000), 10) for index in range(-(-num_trials // 6))]
    matrix["axes"] |= {"learning_rate": rates}
    (folder / "big.yaml").write_text(yaml.safe_dump(matrix, sort_keys=False))


def count_calls(folder: Path):  # type: ignore[no-untyped-def]
    """Put wrappers of Slurm's commands into `bin/`, and return a function that says how often each was called."""
    log, paths = folder / "calls", cluster_path()
    (folder / "bin").mkdir()
    log.touch()
    for name in COMMANDS:
        wrapper = folder / "bin" / name
        wrapper.write_text(f'#!/bin/sh\necho {name} >>"{log}"\nexec {paths[name]} "$@"\n')
        wrapper.chmod(0o755)

    def calls() -> dict[str, int]:
        words = log.read_text().split()
        return {name: words.count(name) for name in COMMANDS}

    return calls


def cluster_path() -> dict[str, str]:
    return {name: subprocess.check_output(["which", name], text=True).strip() for name in COMMANDS}


def timed(command: list[str], folder: Path, env: dict[str, str]) -> tuple[float, float]:
    """Return (wall, CPU) seconds of a process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{command}: exit code {done.returncode}\n{json.dumps(done.stderr[-2000:])}")
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    sys.exit(main())
