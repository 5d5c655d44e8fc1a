"""Effective tokens/s of our best setting over transformers Trainer's best, run in turn on one machine.

    python benchmarks/peer_ratio.py [benchmarks/peer.yaml] [--pairs 5] [--scouts 1] [--seconds 540] [--out FOLDER]

Ours are the runnable cells of the matrix, started as a user starts a trial (`python -m egobench.worker`, every probe
on); theirs are the settings of `benchmarks/peers/hf_trainer.py` below, on the first cell's trial: the same weights,
data, precision, batch and learning rates. Every setting runs `--scouts` times, ours and theirs in turn; then the
fastest of each side, and the fastest of ours that needs no more memory than theirs, run in rounds (ABBA), and the
ratio's sample is the round. Steps are read by the same code on both sides, and a loss trace must agree with the plain
Trainer's, or the setting does not count. What FOLDER holds already is not run again, so that a run cut off by
`--seconds` goes on where it was. On a shared machine only ratios mean anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers.settings import Settings  # noqa: E402
from egobench.launch.sweep import trial_of  # noqa: E402
from egobench.plan.expand import plan  # noqa: E402
from egobench.records.measures import Measures, StepRecord  # noqa: E402
from egobench.records.outcome import Outcome  # noqa: E402
from egobench.records.rank import RankReport  # noqa: E402
from egobench.records.store import SweepPaths, TrialPaths, read_document, read_lines, write_document  # noqa: E402
from egobench.records.summary import merge_steps, summarise  # noqa: E402
from egobench.records.sweep import Sweep  # noqa: E402
from egobench.records.trial import Trial  # noqa: E402
from egobench.spec.matrix import load_matrix  # noqa: E402

CPU_SETTINGS: Final = (
    Settings(),
    Settings(optim="adamw_torch"),
    Settings(attention="eager"),
    Settings(padding="max"),
    Settings(sampling="group_by_length"),
    Settings(workers=1),
    Settings(compile=True),
    Settings(compile=True, padding="max"),
    Settings(compile=True, sampling="group_by_length"),
    Settings(static_graph=True),
)
GPU_SETTINGS: Final = (
    Settings(workers=4),
    Settings(workers=4, liger=True),
    Settings(workers=4, compile=True, padding="max"),
    Settings(workers=4, compile=True),
    Settings(workers=4, sampling="group_by_length"),
)
"""The first of each row is the plain one, whose losses the others are held against."""
TOLERANCE: Final = {"fp32": 0.01, "tf32": 0.05, "bf16": 0.1, "bf16_pure": 0.1, "fp16": 0.1, "fp8": 0.2}
"""Largest difference of a step's loss, in nats: rounding, grown over the steps of a training."""
LIMIT_S: Final = 600.0


@dataclass(frozen=True)
class Candidate:
    """One setting of one side."""

    side: str
    """ours or theirs."""
    name: str
    trial: Trial
    settings: Settings | None = None

    @property
    def key(self) -> str:
        return f"{self.side}-{''.join(c if c.isalnum() else '_' for c in self.name)}"


@dataclass
class Run:
    """What came of one start."""

    measures: Measures | None
    losses: list[float] = field(default_factory=list)
    because: str = ""


class Bench:
    """Starts candidates, keeps what they leave under one folder, and stops starting when the time is up."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self._end = folder, time.monotonic() + seconds
        self.runs: dict[str, list[Run]] = {}
        self.order: list[str] = []
        self._longest_s = 0.0

    def run(self, candidate: Candidate, place: str) -> Run | None:
        """Return the run at a place of the plan, started now or earlier; None: no time is left."""
        paths = TrialPaths(self.folder / place / candidate.key)
        is_done = _beside(paths, "done").exists()
        if not is_done or read_run(paths, candidate.trial.num_ranks).measures is None:  # what failed may be mended
            if time.monotonic() + self._longest_s > self._end:
                return None
            began = time.monotonic()
            _start(candidate, paths)
            self._longest_s = max(self._longest_s, time.monotonic() - began)
        found = read_run(paths, candidate.trial.num_ranks)
        self.runs.setdefault(candidate.key, []).append(found)
        self.order.append(f"{place}/{candidate.key}")
        shown = f"{found.measures.tokens_per_s:,.0f} tokens/s" if found.measures else f"failed: {found.because}"
        print(f"{place} {candidate.side} {candidate.name}: {shown}", file=sys.stderr, flush=True)
        return found


def _start(candidate: Candidate, paths: TrialPaths) -> None:
    """Run a candidate in fresh processes, as a user would."""
    shutil.rmtree(paths.folder, ignore_errors=True)
    write_document(paths.trial, candidate.trial)
    if candidate.settings is None:
        command = [sys.executable, "-m", "egobench.worker", str(paths.trial)]
    else:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(candidate.trial.num_ranks),
            str(ROOT / "benchmarks" / "peers" / "hf_trainer.py"), str(paths.trial), "--out", str(paths.folder),
            *candidate.settings.flags(),
        ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    paths.folder.parent.mkdir(parents=True, exist_ok=True)
    with _beside(paths, "talk").open("wb") as talk:
        process = subprocess.Popen(command, stdout=talk, stderr=talk, env=environment, start_new_session=True)
    try:
        said = str(process.wait(LIMIT_S))
    except subprocess.TimeoutExpired:
        said = f"no end within {LIMIT_S:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # torchrun, killed alone, would leave its ranks behind
    _beside(paths, "done").write_text(said)


def _beside(paths: TrialPaths, kind: str) -> Path:
    # Not inside: a trial's folder belongs to its worker, which tidies it before it begins.
    return paths.folder.with_name(f"{paths.folder.name}.{kind}")


def read_run(paths: TrialPaths, num_ranks: int) -> Run:
    """Read what the ranks left, for either side."""
    reports = [read_document(paths.rank_report(rank), RankReport) for rank in range(num_ranks)]
    whole = [report for report in reports if report is not None and report.outcome == "ok"]
    if len(whole) < num_ranks:
        return Run(None, because=_last_words(paths))
    merged = merge_steps([read_lines(paths.rank_steps(rank), StepRecord) for rank in range(num_ranks)])
    return Run(summarise(merged, whole), [step.loss for step in merged])


def _last_words(paths: TrialPaths) -> str:
    outcome = read_document(paths.outcome, Outcome)
    if outcome is not None:
        return outcome.because
    lines = _beside(paths, "talk").read_text(errors="replace").splitlines()
    errors = [line.strip() for line in lines if "Error" in line and "ChildFailedError" not in line]
    return (errors or lines or ["it said nothing"])[-1][-160:]


def ours_of(sweep: Sweep, folder: Path) -> list[Candidate]:
    """Return the runnable cells of the matrix, named by what differs from the baseline or else varies."""
    cells = sweep.runnable()
    varied = [name for name in sweep.varied if len({str(cell.axes[name]) for cell in cells}) > 1]
    paths = SweepPaths(folder)
    return [
        Candidate(
            "ours",
            " ".join(f"{name}={cell.axes[name]}" for name in varied) or "plain",
            trial_of(sweep, cell, 0, paths),
        )
        for cell in cells
    ]


def theirs_of(trial: Trial, only: str | None) -> list[Candidate]:
    """Return the Trainer's settings for the machine of the trial; the plain one always."""
    table = GPU_SETTINGS if trial.placement.device == "cuda" else CPU_SETTINGS
    chosen = [one for one in table if one is table[0] or not only or any(part in one.name for part in only.split(","))]
    return [Candidate("theirs", settings.name, trial, settings) for settings in chosen]


def in_turn(ours: Sequence[Candidate], theirs: Sequence[Candidate]) -> Iterator[Candidate]:
    """Deal one of ours and one of theirs alternately."""
    pairs = zip_longest(ours, theirs)
    return (candidate for candidate in chain.from_iterable(pairs) if candidate is not None)


def loss_gap(losses: Sequence[float], reference: Sequence[float]) -> float | None:
    """Return the largest difference of a step's loss, None where the traces are of other steps."""
    if not losses or len(losses) != len(reference):
        return None
    return max(abs(a - b) for a, b in zip(losses, reference, strict=True))


def is_fair(candidate: Candidate, runs: Mapping[str, list[Run]], reference: Sequence[float]) -> bool:
    """Tell whether every run of a candidate learned what the plain Trainer learned; another order cannot be told."""
    if candidate.settings is not None and candidate.settings.sampling != "sequential":
        return True
    limit = TOLERANCE[candidate.trial.cell.axes["precision"]]
    gaps = [loss_gap(run.losses, reference) for run in runs.get(candidate.key, []) if run.measures]
    return bool(gaps) and all(gap is not None and gap <= limit for gap in gaps)


def speed(runs: Sequence[Run]) -> float:
    """Return the median of effective tokens/s."""
    return statistics.median([run.measures.tokens_per_s for run in runs if run.measures] or [0.0])


def best(candidates: Sequence[Candidate], fair: Callable[[Candidate], bool], bench: Bench) -> Candidate | None:
    """Return the fastest candidate that ran and computes the same."""
    able = [one for one in candidates if speed(bench.runs.get(one.key, [])) > 0 and fair(one)]
    return max(able, key=lambda one: speed(bench.runs[one.key]), default=None)


def within(candidates: Sequence[Candidate], rival: Candidate, bench: Bench) -> list[Candidate]:
    """Return the candidates whose peak memory is not above a rival's."""
    limit = peak_memory(bench.runs[rival.key])
    return [one for one in candidates if peak_memory(bench.runs.get(one.key, [])) <= limit]


def peak_memory(runs: Sequence[Run]) -> float:
    """Return the median peak, bytes."""
    return statistics.median([run.measures.peak_memory_bytes or 0 for run in runs if run.measures] or [0])


def duel(bench: Bench, ours: Sequence[Candidate], theirs: Candidate, pairs: int) -> dict[str, list[dict[str, float]]]:
    """Run ours and theirs in rounds, every other one backwards; return by name what each of ours gave over theirs."""
    rows: dict[str, list[dict[str, float]]] = {one.name: [] for one in ours}
    for pair in range(pairs):
        turn = (*ours, theirs) if pair % 2 == 0 else (theirs, *reversed(ours))
        found = {candidate.key: bench.run(candidate, f"pair-{pair}") for candidate in turn}
        measured = {key: run.measures for key, run in found.items() if run is not None and run.measures is not None}
        if len(measured) < len(turn):
            break
        b = measured[theirs.key]
        for one in ours:
            a = measured[one.key]
            memory = (a.peak_memory_bytes or 0) / max(1, b.peak_memory_bytes or 0)
            rows[one.name].append({"tokens_per_s": a.tokens_per_s / b.tokens_per_s, "peak_memory": memory})
    return rows


def row_of(candidate: Candidate, bench: Bench, reference: Sequence[float]) -> dict[str, Any]:
    """Return a row of the table."""
    runs = bench.runs.get(candidate.key, [])
    well = [run for run in runs if run.measures is not None]
    peaks = [run.measures.peak_memory_bytes or 0 for run in well if run.measures]
    gaps = [loss_gap(run.losses, reference) for run in well]
    return {
        "side": candidate.side, "name": candidate.name, "runs": len(well),
        "tokens_per_s": [run.measures.tokens_per_s for run in well if run.measures],
        "peak_memory_bytes": peaks,
        "loss_gap": max((gap for gap in gaps if gap is not None), default=None),
        "is_fair": is_fair(candidate, bench.runs, reference),
        "because": next((run.because for run in runs if run.because), ""),
    }  # fmt: skip


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table for people."""
    lines = [f"{'side':<7} {'setting':<46} {'tokens/s':>9} {'[range]':>19} {'peak MiB':>9} {'loss gap':>9}"]
    for row in sorted(rows, key=lambda row: -statistics.median(row["tokens_per_s"] or [0])):
        if not row["tokens_per_s"]:
            lines.append(f"{row['side']:<7} {row['name']:<46} {row['because'] or 'not run'}")
            continue
        values, memory = row["tokens_per_s"], statistics.median(row["peak_memory_bytes"]) / 2**20
        spread = f"[{min(values):,.0f}, {max(values):,.0f}]"
        gap = "other order" if "sampling" in row["name"] else f"{row['loss_gap']:.1e}"
        unfair = "" if row["is_fair"] else "  LOSSES DIFFER"
        line = f"{row['side']:<7} {row['name']:<46} {statistics.median(values):>9,.0f} {spread:>19} {memory:>9,.0f}"
        lines.append(f"{line} {gap:>9}{unfair}")
    return "\n".join(lines)


def main() -> int:
    """Print the tables; 1 where nothing could be compared."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = (options.out or ROOT / "runs" / f"peer-{time.strftime('%Y%m%d-%H%M%S')}").resolve()
    sweep = plan(load_matrix(options.matrix, options.site))
    ours = ours_of(sweep, folder)
    if not ours:
        sys.exit("no cell of the matrix can run here; see `egobench plan`")
    theirs = theirs_of(ours[0].trial, options.theirs)
    bench = Bench(folder, options.seconds)
    for scout in range(options.scouts):
        turn = list(in_turn(ours, theirs))
        for candidate in turn if scout % 2 == 0 else reversed(turn):
            bench.run(candidate, f"scout-{scout}")
    reference = next((run.losses for run in bench.runs.get(theirs[0].key, []) if run.measures), [])
    fair = lambda candidate: is_fair(candidate, bench.runs, reference)  # noqa: E731
    rival = best(theirs, fair, bench)
    # The fastest of ours, and the fastest that needs no more memory than theirs.
    chosen = [best(ours, fair, bench), best(within(ours, rival, bench), fair, bench)] if rival else []
    champions = list({one.key: one for one in chosen if one is not None}.values())
    pairs = duel(bench, champions, rival, options.pairs) if rival else {}
    rows = [row_of(candidate, bench, reference) for candidate in (*ours, *theirs)]
    document = {
        "schema_version": 2, "rows": rows, "pairs": pairs, "order": bench.order, "load": os.getloadavg()[0],
        "rival": rival.name if rival else None,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peer.json").write_text(json.dumps(document, indent=1) + "\n")
    print(shown(rows))
    if rival is None or not any(pairs.values()):
        print("nothing was compared")
        return 1
    for ours_name, ratios in pairs.items():
        print(f"ours ({ours_name}) over theirs ({rival.name}), {len(ratios)} pairs:")
        for name in ("tokens_per_s", "peak_memory"):
            values = [ratio[name] for ratio in ratios]
            print(f"  {name} {statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("matrix", type=Path, nargs="?", default=ROOT / "benchmarks" / "peer.yaml")
    parser.add_argument("--site", help="another site than the matrix names")
    parser.add_argument("--theirs", help="only the Trainer settings whose names hold one of these (a,b,...)")
    parser.add_argument("--scouts", type=int, default=1, help="runs of every setting before the pairs")
    parser.add_argument("--pairs", type=int, default=5, help="runs of the two fastest")
    parser.add_argument("--seconds", type=float, default=7200, help="start nothing that may end later")
    parser.add_argument("--out", type=Path, help="what runs leave; those that are there are not repeated")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
