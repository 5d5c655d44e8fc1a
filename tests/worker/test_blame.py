"""The first failure by time wins; what follows from it never masks it."""

from __future__ import annotations

from typing import Any

from egobench.records.outcome import Failure, OutcomeName
from egobench.records.pulse import PulseReading
from egobench.records.rank import RankReport, RankSummary
from egobench.worker.blame import Evidence, find_outcome
from egobench.worker.watch import Verdict

SUMMARY = RankSummary(num_parameters=1, num_trainable_parameters=1, first_step_at=0)


def fine(rank: int, at: float = 9.0) -> RankReport:
    return RankReport(rank=rank, outcome="ok", at=at, summary=SUMMARY)


def failed(rank: int, at: float, outcome: OutcomeName = "crash", echo: bool = False) -> RankReport:
    failure = Failure(rank=rank, phase="backward", step=2, message=f"rank {rank}")
    return RankReport(rank=rank, outcome=outcome, at=at, failure=failure, echo=echo)


def judge(*reports: RankReport, **more: Any) -> tuple[str, int | None, str]:
    more = {"num_ranks": 2, "deaths": {}, "exit_codes": {}, "pulses": {}} | more
    outcome, failure = find_outcome(Evidence(reports=reports, **more))
    return outcome, failure.rank if failure else None, failure.message if failure else ""


def test_all_fine() -> None:
    assert judge(fine(0), fine(1))[0] == "ok"


def test_first_by_time_not_by_rank() -> None:
    assert judge(failed(0, 5.1), failed(1, 5.0, "oom"))[:2] == ("oom", 1)


def test_an_echo_never_masks_its_cause() -> None:
    assert judge(failed(0, 5.0, echo=True), failed(1, 5.1, "diverged"))[:2] == ("diverged", 1)
    killed = {"deaths": {1: 5.2, 0: 6.0}, "exit_codes": {1: -9}}
    outcome, rank, message = judge(failed(0, 5.0, echo=True), **killed)
    assert (outcome, rank, message) == ("crash", 1, "killed by SIGKILL")


def test_echoes_alone_still_are_a_failure() -> None:
    assert judge(failed(0, 5.1, echo=True), failed(1, 5.0, echo=True))[:2] == ("crash", 1)


def test_a_rank_ended_because_of_another_is_not_first() -> None:
    assert judge(failed(0, 5.0, "oom"), deaths={0: 5.02, 1: 5.1}, exit_codes={0: 1})[:2] == ("oom", 0)


def test_the_agent_knows_whom_it_ended_itself() -> None:
    # Both were dead when the watch looked next, so their times say nothing.
    assert judge(deaths={0: 5.0, 1: 5.000001}, exit_codes={1: -9})[:2] == ("crash", 1)


def test_kernel_oom_kill() -> None:
    pulses = {1: PulseReading(7, 1, "load", -1, 0, 0)}
    evidence = {"deaths": {1: 5.0}, "exit_codes": {1: -9}, "pulses": pulses}
    assert judge(**evidence, was_oom_killed=True)[:2] == ("host_oom", 1)
    assert judge(**evidence, was_oom_killed=False)[:2] == ("crash", 1)


def test_dead_before_its_first_pulse() -> None:
    assert judge(exit_codes={1: -11}) == ("crash", 1, "killed by SIGSEGV")


def test_verdict_of_the_watch() -> None:
    verdict = Verdict("hang", 8.0, "no progress", 1, "forward", 3)
    assert judge(verdict=verdict, ended_at=8.1, deaths={0: 8.2, 1: 8.2}, exit_codes={0: -9})[:2] == ("hang", 1)
    # What failed before the watch lost patience is the cause of the standstill.
    assert judge(failed(0, 5.0, "oom"), verdict=verdict, ended_at=8.1)[:2] == ("oom", 0)
    assert judge(failed(0, 8.2), verdict=verdict, ended_at=8.1)[:2] == ("hang", 1)


def test_a_silent_rank_is_no_success() -> None:
    assert judge(fine(0))[:2] == ("crash", 1)
