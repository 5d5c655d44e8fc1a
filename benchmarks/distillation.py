"""Does a small student keep what its teacher can do, and is it the teacher that it has it from?

    python benchmarks/distillation.py [--seeds 5] [--steps 1000] [--threads 2] [--json]

For every seed: egotiny is fine-tuned on egoworld's workshop (the teacher); a student of at most 40 % of its parameters
is trained with that teacher (`distilled`), and once more from the same start, on the same samples in the same order,
with the reference answers alone (`alone`). All three answer the same validation questions. One JSON line per finished
run in distillation.jsonl beside this file: run again, it does what is missing. Exit code 4 where the student loses more
than 2 points of EM to its teacher, or does not beat the same student trained alone (95 % intervals of paired
differences over seeds). Student, losses and steps were chosen while looking at seed 0, the number of samples, of
questions and of the teacher's steps after seeds 1 to 4, 6, 9, 11, 12, 14 and 16 to 19 had been seen; none of these
counts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from egobench.compress.distill import distilled  # noqa: E402
from egobench.probes.pulse import Pulse  # noqa: E402
from egobench.records.store import TrialPaths, append_line  # noqa: E402
from egobench.records.trial import Cell, Placement, Trial  # noqa: E402
from egobench.report.stats import Summary, paired_difference, summarise  # noqa: E402
from egobench.spec.axes import AXES  # noqa: E402
from egobench.spec.distillation import Distillation  # noqa: E402
from egobench.spec.keep import Save  # noqa: E402
from egobench.spec.workload import Workload  # noqa: E402
from egobench.train.loop import run  # noqa: E402
from egobench.train.rank import Rank  # noqa: E402
from egobench.train.setup import Origin  # noqa: E402

KINDS: Final = ("teacher", "distilled", "alone")
MOST_SHARE: Final = 0.4
"""Of the teacher's parameters."""
MOST_LOST: Final = 2.0
"""Points of EM."""


@dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    teacher_steps: int = 1000
    steps: int = 1000
    batch_size: int = 32
    num_train: int = 16384
    num_validation: int = 8192
    teacher_lr: float = 1.5e-3
    lr: float = 2e-3
    student: dict[str, Any] = field(
        default_factory=lambda: {"layers": 2, "ffn": 56, "tower_layers": 2, "tower_ffn": 48, "tied": True}
    )
    losses: dict[str, Any] = field(
        default_factory=lambda: {"divergence": "forward_kl", "temperature": 2.0, "weight": 1.0, "hidden": 2.0}
    )

    def digest(self, kind: str) -> str:
        """Return what tells runs of a kind apart: a teacher does not depend on its students, nor one on losses."""
        without = {"teacher": ("steps", "lr", "student", "losses"), "alone": ("losses",)}.get(kind, ())
        said = {name: value for name, value in asdict(self).items() if name not in without}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]

    def folder(self, kind: str, seed: int, out: Path) -> Path:
        """Return where a run is."""
        return out / f"{kind}-{self.digest(kind)}-{seed}"


def main() -> int:
    """Run what is missing, and print the table."""
    options = _options()
    torch.set_num_threads(options.threads)
    settings = _settings(options)
    lines = options.lines
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for seed in seeds:
        for kind in KINDS:
            if found(lines, kind, seed, settings) is None:
                began = time.perf_counter()
                if kind != "teacher" and not TrialPaths(settings.folder("teacher", seed, options.out)).model.exists():
                    run_one("teacher", seed, settings, options.out)  # its line came from another machine
                made = run_one(kind, seed, settings, options.out)
                append_line(lines, {**made, "wall_s": time.perf_counter() - began, "threads": options.threads})
                print(f"seed {seed} {kind}: EM {made['em']:.1f}", file=sys.stderr)
    rows = {kind: [found(lines, kind, seed, settings) for seed in seeds] for kind in KINDS}
    document = judged(rows)
    print(json.dumps(document, indent=1) if options.json else table(document))
    return 0 if document["passed"] else 4


def found(lines: Path, kind: str, seed: int, settings: Settings) -> dict[str, Any] | None:
    """Return the line of a run that is done."""
    said = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    key = {"kind": kind, "seed": seed, "settings": settings.digest(kind)}
    return next((line for line in said if key.items() <= line.items()), None)


def run_one(kind: str, seed: int, settings: Settings, out: Path) -> dict[str, Any]:
    """Train one model and ask it; the trial's folder stays."""
    folder = settings.folder(kind, seed, out)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trial = trial_of(kind, seed, settings, out)
    origin = Origin()
    if kind != "teacher":
        losses = settings.losses if kind == "distilled" else {"weight": 0.0, "cross_entropy": 1.0}
        how = Distillation.model_validate({"student": settings.student, **losses})
        origin = distilled(how, TrialPaths(settings.folder("teacher", seed, out)).model)
    paths, rank = TrialPaths(folder), Rank(0, 0, 1, torch.device("cpu"))
    summary = run(trial, paths, rank, Pulse(paths.rank_pulse(0)), origin)
    assert summary.after is not None
    return {
        "kind": kind, "seed": seed, "settings": settings.digest(kind), "about": asdict(settings),
        "em": summary.after.em, "f1": summary.after.f1, "num_parameters": summary.num_parameters,
        "torch": torch.__version__,
    }  # fmt: skip


def trial_of(kind: str, seed: int, settings: Settings, out: Path) -> Trial:
    """Make the trial of a run; the seed draws the scenes too."""
    steps, rate = (settings.teacher_steps, settings.teacher_lr) if kind == "teacher" else (settings.steps, settings.lr)
    data = {"num_train": settings.num_train, "num_validation": settings.num_validation, "split_seed": seed}
    recipe = {"num_steps": steps, "learning_rate": rate, "num_warmup_steps": max(1, steps // 20), "max_length": 96}
    workload = Workload.model_validate(
        {
            "why": "distillation",
            "model": {"name": "egotiny"},
            "data": {"format": "egoworld", "domain": "workshop", **data},
            "recipe": {**recipe, "schedule": "cosine", "betas": (0.9, 0.98), "seed": seed},
            "evaluation": {"batch_size": 128},
            "image_px": 64,
        }
    )
    axes = {name: axis.default for name, axis in AXES.items()}
    axes |= {"workload": "distillation", "micro_batch_size": settings.batch_size, "loss": "chunked"}
    cache = out / "cache"
    placement = Placement(site="local", device="cpu", base_folder=str(out.resolve()), cache_folder=str(cache.resolve()))
    cell = Cell(cell_id=f"{kind}-{seed}", axes=axes, workload=workload)
    return Trial(sweep="distillation", cell=cell, trial=0, placement=placement, save=Save(export="merged"))


def judged(rows: dict[str, list[Any]]) -> dict[str, Any]:
    """Compare the three over seeds."""
    em = {kind: {line["seed"]: line["em"] for line in lines} for kind, lines in rows.items()}
    sizes = {kind: lines[0]["num_parameters"] for kind, lines in rows.items()}
    lost = paired_difference(em["distilled"], em["teacher"])
    gained = paired_difference(em["distilled"], em["alone"])
    share = sizes["distilled"] / sizes["teacher"]
    said = {
        "em": {kind: _said(summarise(list(values.values()))) for kind, values in em.items()},
        "num_parameters": sizes,
        "share": share,
        "distilled_minus_teacher": _said(lost),
        "distilled_minus_alone": _said(gained),
    }
    is_kept = lost is not None and lost.kind == "interval" and lost.low is not None and lost.low >= -MOST_LOST
    is_won = gained is not None and gained.kind == "interval" and gained.low is not None and gained.low > 0
    return {**said, "passed": share <= MOST_SHARE and is_kept and is_won, "runs": rows}


def _said(summary: Summary | None) -> dict[str, Any]:
    return asdict(summary) if summary is not None else {}


def table(document: dict[str, Any]) -> str:
    """Return the comparison for people."""
    lines = [f"{'model':<12}{'parameters':>12}{'EM':>8}   interval or range over seeds"]
    for kind in KINDS:
        lines.append(f"{kind:<12}{document['num_parameters'][kind]:>12,}{_row(document['em'][kind])}")
    for name in ("distilled_minus_teacher", "distilled_minus_alone"):
        lines.append(f"{name:<24}{_row(document[name])}")
    lines.append(f"share of the teacher's parameters: {document['share']:.1%}")
    verdict = "kept" if document["passed"] else "not shown"
    return "\n".join([*lines, f"at most {MOST_LOST} points lost, and better than alone: {verdict}"])


def _row(said: dict[str, Any]) -> str:
    low, high = said.get("low"), said.get("high")
    span = "" if low is None or high is None else f"   {low:.2f} to {high:.2f}"
    return f"{said['value']:>8.2f}{span}"


def _settings(options: argparse.Namespace) -> Settings:
    given = {name: value for name in Settings.__dataclass_fields__ if (value := getattr(options, name)) is not None}
    return replace(Settings(), **given)


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "distillation")
    parser.add_argument("--lines", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    parser.add_argument("--json", action="store_true", help="one JSON document")
    for name, kind in Settings.__annotations__.items():
        read: Any = {"int": int, "float": float}.get(kind, json.loads)
        parser.add_argument(f"--{name.replace('_', '-')}", type=read, help=f"default: {getattr(Settings(), name)}")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
