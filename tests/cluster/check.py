"""Whether a sweep's folder tells one true story. Own code over plain files: it shares nothing with what it checks."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.cluster.ground import Ground, read

NOT_TRIALS: Final = {"incompatible", "predicted_oom"}
UNFINISHED: Final = {"pending", "running"}
CLOCKS_S: Final = 2.0


@dataclass
class Verdict:
    """What was found."""

    outcomes: Counter[str] = field(default_factory=Counter)
    attempts: dict[tuple[str, int, int], str] = field(default_factory=dict)
    """cell_id, trial, attempt -> outcome."""
    violations: list[str] = field(default_factory=list)


def check(ground: Ground, skew_s: float = 0.0) -> Verdict:
    """Check every invariant of a sweep that is over.

    Args:
        ground: The sweep.
        skew_s: How wrong the nodes' clocks were made at most.
    """
    verdict = Verdict()
    sweep = read(ground.sweep / "sweep.json")
    if sweep is None:
        verdict.violations.append("sweep.json: missing")
        return verdict
    for cell in sweep["cells"]:
        if cell["outcome"] not in NOT_TRIALS:
            for trial in range(sweep["trials"]):
                _check_trial(ground, cell, trial, skew_s, verdict)
    for cell, trial, attempt in sorted(ground.seen_claims - verdict.attempts.keys()):
        verdict.violations.append(f"{cell}/{trial}: attempt {attempt} was begun and has no record")
    for (cell, trial), text in ground.seen_final.items():
        path = ground.sweep / cell / str(trial) / "outcome.json"
        if not path.exists() or path.read_text() != text:
            verdict.violations.append(f"{cell}/{trial}: its ok outcome was changed later")
    _check_allocations(ground, verdict)
    return verdict


def _check_trial(ground: Ground, cell: dict[str, Any], trial: int, skew_s: float, verdict: Verdict) -> None:
    folder = ground.sweep / cell["cell_id"] / str(trial)
    where = f"{cell['cell_id']}/{trial}"
    final = read(folder / "outcome.json")
    if final is None:
        verdict.violations.append(f"{where}: planned, and has no outcome")
        return
    verdict.outcomes[final["outcome"]] += 1
    archived = sorted((folder / "attempts").glob("*"), key=lambda path: int(path.name))
    documents = []
    for path in archived:
        document = read(path / "outcome.json")
        if document is None:
            verdict.violations.append(f"{where}: attempts/{path.name} has no outcome")
            continue
        if document["attempt"] != int(path.name):
            verdict.violations.append(f"{where}: attempts/{path.name} is of attempt {document['attempt']}")
        if not document["interrupted"] or document["attempt"] >= ground.max_attempts:
            verdict.violations.append(
                f"{where}: attempt {path.name} was final ({document['outcome']}), and launched again"
            )
        documents.append(document)
    documents.append(final)
    _check_attempts(where, documents, skew_s, verdict)
    if final["outcome"] in UNFINISHED or (final["cell_id"], final["trial"]) != (cell["cell_id"], trial):
        verdict.violations.append(
            f"{where}: outcome.json says {final['outcome']} of {final['cell_id']}/{final['trial']}"
        )
    if final["interrupted"] and final["attempt"] < ground.max_attempts:
        verdict.violations.append(f"{where}: {final['outcome']} at attempt {final['attempt']} was not launched again")
    if final["outcome"] == "ok":
        verdict.violations += [f"{where}: {text}" for text in _check_ok(folder, cell["axes"], final)]


def _check_attempts(where: str, documents: list[dict[str, Any]], skew_s: float, verdict: Verdict) -> None:
    numbers = [document["attempt"] for document in documents]
    if numbers != list(range(1, len(numbers) + 1)):
        verdict.violations.append(f"{where}: attempts are numbered {numbers}")
    cell, trial = where.rsplit("/", 1)
    for document in documents:
        verdict.attempts[cell, int(trial), document["attempt"]] = document["outcome"]
    for before, after in itertools.pairwise(documents):
        if before["ended_at"] > after["started_at"] + CLOCKS_S + skew_s:
            late_s = before["ended_at"] - after["started_at"]
            verdict.violations.append(
                f"{where}: attempt {after['attempt']} began {late_s:.1f} s before the end of the last"
            )


def _check_ok(folder: Path, axes: dict[str, Any], outcome: dict[str, Any]) -> list[str]:
    """Return what does not hold of a record that claims to be a measurement."""
    wanted = list(range(int(axes["num_steps"])))
    found = []
    ranks = {path.stem: _lines(path) for path in (folder / "ranks").glob("*.jsonl")}
    if sorted(ranks) != [str(rank) for rank in range(int(axes["gpus"]))]:
        found.append(f"ok, with lines of ranks {sorted(ranks)}")
    for rank, lines in ranks.items():
        if [line["step"] for line in lines] != wanted:
            found.append(f"ok, but rank {rank} has steps {[line['step'] for line in lines]}")
        times = [line["started_at"] for line in lines]
        if times != sorted(times):
            found.append(f"ok, but the lines of rank {rank} are of two runs")
        report = read(folder / "ranks" / f"{rank}.json")
        if report is None or report.get("outcome") != "ok":
            found.append(f"ok, but rank {rank} does not say so")
    for step, lines in enumerate(zip(*ranks.values(), strict=False)):
        norms = {line["grad_norm"] for line in lines}
        if len(norms) != 1 or not all(math.isfinite(norm) for norm in norms):
            found.append(f"ok, but in step {step} the ranks have {sorted(norms)}")
    if [line["step"] for line in _lines(folder / "steps.jsonl")] != wanted:
        found.append("ok, but steps.jsonl is not whole")
    if not outcome["measures"] or outcome["measures"]["num_steps"] != len(wanted):
        found.append("ok, but its summary is of another number of steps")
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        return []


def _check_allocations(ground: Ground, verdict: Verdict) -> None:
    for folder in (ground.sweep / "allocations").glob("*"):
        if (folder / "job.json").exists() and not (folder / "ended.json").exists():
            verdict.violations.append(f"allocation {folder.name}: nobody says that it is over")
