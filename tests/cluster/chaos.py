"""The fault campaign, `make chaos`: sweeps of short trials, faults at random moments, then the question what holds.

A round is one sweep. While its trials run, faults are drawn from a shuffled deck and injected at random moments, some
at the same time; what a fault took away is given back after some seconds. Whenever `egobench sweep` ends before the
sweep is done, the same command is started again, as a user would. At the end `check.py` reads the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from tests.cluster.check import check
from tests.cluster.faults import EVERYWHERE
from tests.cluster.ground import EXIT_OUR_BUG, Attempt, Fire, Ground
from tests.cluster.lab import Cluster, missing_programs
from tests.cluster.lab_faults import REAL, SKEWS_S
from tests.cluster.sites import ROOT
from tests.cluster.standin.control import StandIn
from tests.cluster.standin_faults import STANDIN
from tests.cluster.table import Result, Row, machine, merge, render, write_into

Where = Literal["real", "standin"]
Lab = TypeVar("Lab", Cluster, StandIn)
Inject = Callable[[Fire], list[Attempt] | None]
FAULTS_A_ROUND: Final = 26
GAP_S: Final[dict[Where, float]] = {"real": 4.0, "standin": 2.5}
TRIALS: Final = 7
STEPS: Final = 150
PATIENCE_S: Final = 5.0
"""A fault waits so long for a moment in which a trial runs."""
FOLDER_MIB: Final = 512
FINISH_WITHIN_S: Final = 300.0
SITE: Final[dict[str, Any]] = {
    "gpus_per_node": 2, "memory_gib_per_node": 8, "pack_min": 1, "expected_trial_min": 0.1, "quiet_limit_s": 8,
    "trial_time_limit_s": 60, "stall_limit_s": 60, "time_limit_min": 5,
}  # fmt: skip


@dataclass(frozen=True)
class Round:
    """One sweep of the campaign."""

    where: Where
    number: int
    seed: int
    faults: int
    """To inject at most; fewer if the sweep is done before."""
    trials: int = TRIALS
    """Of each of its six cells."""
    gap_s: float = 4.0
    """Between two faults, on average."""

    @property
    def partition(self) -> str:
        """Every third one on the real Slurm is cancelled when it is preempted, instead of requeued."""
        return "scav" if self.where == "real" and self.number % 3 == 2 else "main"

    @property
    def max_attempts(self) -> int:
        return 3 + 3 * (self.number % 2)


def shares(where: str, faults: int) -> dict[Where, int]:
    """Return how many faults go where: three fifths to the real Slurm."""
    of_standin = {"real": 0, "standin": faults, "both": faults * 2 // 5}[where]
    return {"real": faults - of_standin, "standin": of_standin}


@contextlib.contextmanager
def own_file_system() -> Iterator[Path]:
    """A small file system of its own where we may mount one, so that it can be filled up; else a folder."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={FOLDER_MIB}m", "chaos", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def play(plan: Round, result: Result, keep: Path | None, until: float) -> int:
    """Run one round, add what it showed, and return how many faults it took."""
    with own_file_system() as folder:
        lab: Cluster | StandIn = Cluster.up(nodes=3, gpus=2) if plan.where == "real" else StandIn.up(nodes=3, gpus=2)
        try:
            ground = Ground(folder, lab.env, max_attempts=plan.max_attempts)
            site = SITE | {"partition": plan.partition}
            ground.prepare(trials=plan.trials, steps=STEPS, gpus=(1, 2, 4), site=site)
            return _play(plan, ground, lab, result, until)
        finally:
            if keep is not None:
                shutil.copytree(folder, keep / f"{plan.where}-{plan.number}", dirs_exist_ok=True)
            lab.down()


def _play(plan: Round, ground: Ground, lab: Cluster | StandIn, result: Result, until: float) -> int:
    chance = random.Random(f"{plan.seed} {plan.where} {plan.number}")
    fire, deck = Fire(ground, chance), _deck(lab)
    waiting: list[str] = []
    hits: list[tuple[str, list[Attempt]]] = []
    ground.drive()
    due = time.monotonic() + 6
    while len(hits) < plan.faults and not ground.is_over() and time.monotonic() < until:
        ground.poll()
        fire.tick()
        now = time.monotonic()
        if now > due and (ground.running() or now > due + PATIENCE_S):
            waiting = waiting or chance.sample(sorted(deck), len(deck))
            hits += (new := _inject_first(waiting, deck, fire))
            for name, hit in new:
                say(f"{plan.where} {plan.number}: {len(hits)}/{plan.faults} {name} ({len(hit)} run)")
                due = time.monotonic() + chance.expovariate(1 / plan.gap_s)
        time.sleep(0.1)
    fire.tick(everything=True)
    _conclude(plan, ground, lab, hits, result)
    return len(hits)


def _inject_first(waiting: list[str], deck: dict[str, Inject], fire: Fire) -> list[tuple[str, list[Attempt]]]:
    """Inject the first fault that finds somebody to hit, and take it from the list."""
    for name in list(waiting):
        hit = deck[name](fire)
        if hit is not None:
            waiting.remove(name)
            return [(name, hit)]
    return []


def _deck(lab: Cluster | StandIn) -> dict[str, Inject]:
    if isinstance(lab, Cluster):
        return EVERYWHERE | {name: _bound(inject, lab) for name, inject in REAL.items()}
    return EVERYWHERE | {name: _bound(inject, lab) for name, inject in STANDIN.items()}


def _bound(inject: Callable[[Fire, Lab], list[Attempt] | None], lab: Lab) -> Inject:
    return lambda fire: inject(fire, lab)


def _conclude(
    plan: Round, ground: Ground, lab: Cluster | StandIn, hits: list[tuple[str, list[Attempt]]], result: Result
) -> None:
    """Let the sweep finish in peace, and check it."""
    deadline = time.monotonic() + FINISH_WITHIN_S
    lab.start() if isinstance(lab, Cluster) else lab.settle()
    while not ground.is_over() and time.monotonic() < deadline:
        ground.poll()
        time.sleep(0.1)
    ground.look()
    where = f"{plan.where} {plan.number}"
    verdict = check(ground, skew_s=max(SKEWS_S) if any(name.startswith("clock") for name, _ in hits) else 0.0)
    if not ground.is_over():
        verdict.violations.append(
            f"the sweep did not come to its end within {FINISH_WITHIN_S:g} s; exits {Counter(ground.exits)}"
        )
        ground.kill()
    if EXIT_OUR_BUG in ground.exits:
        verdict.violations.append("a command ended with a traceback")
    verdict.violations += _ask_egobench(ground, dict(verdict.outcomes))
    verdict.violations += _leftovers(ground)
    for name, hit in hits:
        row = result.rows.setdefault(name, Row("both" if name in EVERYWHERE else plan.where))
        row.injected += 1
        row.led_to.update(verdict.attempts.get(attempt, "no record") for attempt in hit)
    result.num_rounds += 1
    result.outcomes.update(verdict.outcomes)
    result.attempts.update(verdict.attempts.values())
    result.violations += [f"{where}: {text}" for text in verdict.violations]
    say(f"{where}: exits {dict(Counter(ground.exits))}, outcomes {dict(verdict.outcomes)}")
    for text in verdict.violations:
        say(f"  VIOLATION: {text}")


def _ask_egobench(ground: Ground, outcomes: dict[str, int]) -> list[str]:
    """Return where `egobench status` and `report` disagree with what the files say."""
    base = [sys.executable, "-m", "egobench"]
    env = os.environ | dict(ground.env)
    status = subprocess.run(
        [*base, "status", str(ground.sweep), "--json"], env=env, capture_output=True, text=True, check=False
    )
    if status.returncode:
        return [f"egobench status: exit code {status.returncode}"]
    ledger = {name: count for name, count in json.loads(status.stdout)["ledger"].items() if count}
    found = []
    if ledger.pop("planned", 0) != sum(outcomes.values()) or ledger != outcomes:
        found.append(f"egobench status counts {ledger}, the files {outcomes}")
    out = ["--out", str(ground.folder / "reports")]
    report = subprocess.run(
        [*base, "report", str(ground.sweep), *out], env=env, capture_output=True, text=True, check=False
    )
    return found + (
        [f"egobench report: exit code {report.returncode}: {report.stderr[-300:]}"] if report.returncode else []
    )


def _leftovers(ground: Ground) -> list[str]:
    deadline = time.monotonic() + 15
    while (left := ground.leftovers()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [f"{len(left)} processes of the sweep still run: {', '.join(sorted(left.values()))}"] if left else []


def say(text: str) -> None:
    print(f"{time.strftime('%T')} {text}", file=sys.stderr, flush=True)


def slurm_version() -> str:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    program = shutil.which("slurmctld", path=path)
    return (
        subprocess.run([program, "-V"], capture_output=True, text=True, check=False).stdout.strip() if program else ""
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=220, help="how many to inject (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60, help="inject none later than this")
    parser.add_argument("--where", choices=["real", "standin", "both"], default="both")
    parser.add_argument("--page", type=lambda text: Path(text).resolve(), help="write the table into this page")
    parser.add_argument("--keep", type=lambda text: Path(text).resolve(), help="copy each round's folder here")
    parser.add_argument("--copy", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.where != "standin" and (because := missing_programs()):
        parser.exit(5, f"{because}\n")
    if given.copy is None:
        return _play_in_copy(given)
    command = f"python -m tests.cluster.chaos --seed {given.seed} --faults {given.faults} --where {given.where}"
    result = run_campaign(given.where, given.faults, given.seed, given.minutes, command, given.keep)
    text = render(result, f"Python {sys.version.split()[0]}, {slurm_version()}")
    print(text)
    if given.page is not None:
        write_into(given.page, text)
    return 1 if result.violations else 0


def _play_in_copy(given: argparse.Namespace) -> int:
    """Run the campaign from a copy of the code, so that nobody's edits get into it."""
    with tempfile.TemporaryDirectory(prefix="chaos-code-") as copy:
        for name in ("egobench", "tests", "slurm_templates"):
            shutil.copytree(ROOT / name, Path(copy) / name, ignore=shutil.ignore_patterns("__pycache__"))
        words = [f"--{name}={value}" for name, value in vars(given).items() if value is not None]
        return subprocess.run(
            [sys.executable, "-m", "tests.cluster.chaos", *words, f"--copy={copy}"], cwd=copy, check=False
        ).returncode


def run_slice(faults: int, seed: int) -> Result:
    """Play one short round on the real Slurm."""
    result = Result(seed, "")
    play(Round("real", 0, seed, faults, trials=3, gap_s=2.0), result, None, time.monotonic() + 180)
    return result


def run_campaign(where: str, faults: int, seed: int, minutes: float, command: str, keep: Path | None) -> Result:
    """Play all rounds, those of the two places side by side."""
    began = time.monotonic()
    say(f"{faults} faults, seed {seed}, on {machine()}")

    def play_all(place: Where, share: int) -> Result:
        result, number = Result(seed, command), 0
        while share > 0 and time.monotonic() < began + 60 * minutes:
            plan = Round(place, number, seed, min(share, FAULTS_A_ROUND), gap_s=GAP_S[place])
            share -= play(plan, result, keep, began + 60 * minutes)
            number += 1
        return result

    with ThreadPoolExecutor() as pool:
        result = merge(list(pool.map(play_all, *zip(*shares(where, faults).items(), strict=True))))
    result.took_s = time.monotonic() - began
    return result


if __name__ == "__main__":
    raise SystemExit(main())
