"""Which of the things that went wrong came first. Pure: reports, deaths and the watch's verdict in, a failure out."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from egobench.probes.pulse import PulseReading
from egobench.records.outcome import Failure, OutcomeName
from egobench.records.rank import RankReport
from egobench.worker.watch import Verdict


@dataclass(frozen=True)
class Evidence:
    """Everything known about the ranks of a trial that is over."""

    num_ranks: int
    reports: Sequence[RankReport]
    deaths: Mapping[int, float]
    """Rank -> Unix time of death."""
    exit_codes: Mapping[int, int]
    """Rank -> code, of those that the elastic agent saw failing first."""
    pulses: Mapping[int, PulseReading]
    verdict: Verdict | None = None
    ended_at: float | None = None
    """Unix time at which the watch killed the ranks; later deaths are ours."""
    was_oom_killed: bool = False
    """The kernel's OOM killer struck during the trial."""


def find_outcome(evidence: Evidence) -> tuple[OutcomeName, Failure | None]:
    """Return how the trial ended, and the first failing rank by time."""
    if first := _first_own_failure(evidence):
        return first
    if verdict := evidence.verdict:
        return verdict.outcome, Failure(
            rank=verdict.rank, phase=verdict.phase, step=verdict.step, message=verdict.message
        )
    echoes = sorted((r for r in evidence.reports if r.outcome != "ok"), key=lambda report: report.at)
    if echoes:
        return echoes[0].outcome, echoes[0].failure
    silent = [rank for rank in range(evidence.num_ranks) if rank not in {r.rank for r in evidence.reports}]
    if silent:
        return _silent_end(silent[0], evidence)
    return "ok", None


def _first_own_failure(evidence: Evidence) -> tuple[OutcomeName, Failure | None] | None:
    """Return the earliest of the failures that are nobody's echo and that we did not bring about."""
    until = evidence.verdict.at if evidence.verdict else float("inf")
    own = [r for r in evidence.reports if r.outcome != "ok" and not r.echo and r.at <= until]
    first = min(own, key=lambda report: report.at, default=None)
    reported = {report.rank for report in evidence.reports}
    killed_at = min(until, evidence.ended_at or float("inf"))
    silent = {rank: at for rank, at in evidence.deaths.items() if rank not in reported and at < killed_at}
    if evidence.exit_codes and killed_at == float("inf"):
        # The agent saw these go first, and ended the others itself; one may have gone before its first pulse.
        unseen = float("-inf") if first is None else first.at
        silent = {rank: silent.get(rank, unseen) for rank in evidence.exit_codes if rank not in reported}
    dead = min(silent, key=lambda rank: silent[rank], default=None)
    if first is not None and (dead is None or first.at <= silent[dead]):
        return first.outcome, first.failure
    return _silent_end(dead, evidence) if dead is not None else None


def _silent_end(rank: int, evidence: Evidence) -> tuple[OutcomeName, Failure]:
    code = evidence.exit_codes.get(rank)
    pulse = evidence.pulses.get(rank)
    outcome: OutcomeName = "host_oom" if evidence.was_oom_killed and code in (None, -signal.SIGKILL) else "crash"
    return outcome, Failure(
        rank=rank,
        phase=pulse.phase if pulse else "launch",
        step=pulse.step if pulse else -1,
        message=_how(code) + (" by the kernel's OOM killer" if outcome == "host_oom" else ""),
    )


def _how(code: int | None) -> str:
    if code is None:
        return "ended without a report"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exited with code {code} and without a report"
