"""What share of GPU time goes into measured steps: one job per trial, against packed jobs with a warm fork server.

    python benchmarks/packing.py [--pairs 1] [--trials 3] [--json]

Needs the Slurm packages; brings the test cluster of `tests/cluster` up by itself (its GPUs are names, ranks compute on
CPUs). The same trials of egotiny, the real training loop, run both ways through `egobench sweep`; the data are cached
beforehand, so that neither way pays for them. Shares are those of `allocations/*/usage.json`; what Slurm and `srun`
take before a worker begins is in neither, so the advantage of packing is larger than shown here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from egobench.records.allocation import AllocationPaths, list_allocations  # noqa: E402
from egobench.records.store import SweepPaths, read_document  # noqa: E402
from egobench.records.usage import Usage  # noqa: E402
from tests.cluster.lab import Cluster, missing_programs  # noqa: E402
from tests.cluster.sites import SlurmSites  # noqa: E402

WAYS: Final = {"one job per trial": 1, "packed": None}
"""Name -> the site's max_trials_per_job."""
PARTS: Final = ("measured_s", "warmup_s", "evaluation_s", "startup_s", "lost_s", "idle_s")
LEAST_RATIO: Final = 2.0
MATRIX: Final[dict[str, Any]] = {
    "why": "How much of the GPUs' time do measured steps get?",
    "workloads": {
        "w": {
            "why": "egotiny, a short training",
            "model": {"name": "egotiny"},
            "data": {"format": "egoworld", "domain": "workshop", "num_train": 256, "num_validation": 32},
            "recipe": {"num_steps": 16, "learning_rate": 1.5e-3, "max_length": 96},
            "evaluation": {"num_questions": 16},
            "image_px": 64,
            "defaults": {"micro_batch_size": 8},
        }
    },
    "axes": {"precision": ["fp32", "bf16"], "attention": ["sdpa", "eager"]},
}


def main() -> int:
    """Print the shares; 1 where packing does not double them."""
    options = _options()
    if because := missing_programs():
        sys.exit(f"no test cluster: {because}")
    shares: dict[str, list[float]] = {way: [] for way in WAYS}
    rows: list[dict[str, Any]] = []
    lab = Cluster.up()
    try:
        with lab.active(), tempfile.TemporaryDirectory(prefix="packing-") as folder:
            sites = SlurmSites(Path(folder), os.environ["SLURM_CONF"])
            run(sites, "cache", {**MATRIX, "axes": {"precision": ["fp32"]}, "trials": 1}, None)
            for pair in range(options.pairs):
                order = list(WAYS) if pair % 2 == 0 else list(reversed(WAYS))
                for way in order:
                    row = run(sites, f"{way.split()[0]}-{pair}", {**MATRIX, "trials": options.trials}, WAYS[way])
                    shares[way].append(row["measured_share"])
                    rows.append({"way": way, "pair": pair, **row})
                    lab.tidy()
    finally:
        lab.down()
    ratios = [packed / alone for alone, packed in zip(shares["one job per trial"], shares["packed"], strict=True)]
    document: dict[str, Any] = {
        "rows": rows,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "load": os.getloadavg()[0],
    }
    print(json.dumps(document, indent=1) if options.json else table(rows, document["ratio"]))
    return 0 if document["ratio"] >= LEAST_RATIO else 1


def run(sites: SlurmSites, name: str, matrix: dict[str, Any], most: int | None) -> dict[str, Any]:
    """Run a sweep and return what its GPUs' time went into."""
    # One rank a job, and one job at a time: the two ways are to differ in packing, not in crowding.
    limits = {"time_limit_min": 60, "pack_min": 30, "max_gpus": 1, "gpus_per_node": 1}
    sites.write("lab", standin=False, max_trials_per_job=most, **limits)
    path = sites.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "site": "lab", **matrix}, sort_keys=False))
    began = time.time()
    command = [sys.executable, "-m", "egobench", "sweep", str(path), "--runs", str(sites.runs)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=sites.folder)
    wall_s = time.time() - began
    return {"wall_s": wall_s, **shares_of(list_allocations(SweepPaths(sites.runs / name)))}


def shares_of(allocations: Iterable[AllocationPaths]) -> dict[str, Any]:
    """Add up the usage of allocations."""
    usages = [usage for paths in allocations if (usage := read_document(paths.usage, Usage)) is not None]
    gpu_s = {part: sum(usage.num_gpus * getattr(span, part) for usage in usages for span in usage.spans)
             for part in PARTS}  # fmt: skip
    total_s = sum(gpu_s.values())
    num_trials = sum(span.num_trials for usage in usages for span in usage.spans)
    facts = {"num_jobs": len(usages), "num_trials": num_trials, "gpu_s": gpu_s, "total_gpu_s": total_s}
    return {**facts, "measured_share": gpu_s["measured_s"] / total_s}


def table(rows: list[dict[str, Any]], ratio: float) -> str:
    """Return the rows for people."""
    head = f"{'way':<18} jobs trials  wall s  GPU s  " + "  ".join(f"{part.removesuffix('_s'):>10}" for part in PARTS)
    lines = [head]
    for row in rows:
        parts = "  ".join(f"{100 * row['gpu_s'][part] / row['total_gpu_s']:>9.1f}%" for part in PARTS)
        counts = f"{row['num_jobs']:>4} {row['num_trials']:>6}"
        lines.append(f"{row['way']:<18} {counts}  {row['wall_s']:>6.1f}  {row['total_gpu_s']:>5.1f}  {parts}")
    return "\n".join([*lines, f"measured share, packed over one job per trial: {ratio:.2f}"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1, help="how often each way runs")
    parser.add_argument("--trials", type=int, default=3, help="of each of the four cells")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
