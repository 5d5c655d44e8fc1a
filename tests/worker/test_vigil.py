"""When a trial counts as hung, and who is to blame."""

from __future__ import annotations

import pytest

from egobench.records.outcome import Phase
from egobench.records.pulse import PulseReading
from egobench.worker.process import Usage
from egobench.worker.vigil import Vigil, furthest_behind


def pulse(step: int, phase: Phase, counter: int = 1, at: float = 0.0) -> PulseReading:
    return PulseReading(counter, 100, phase, step, at, at)


def usage(wanted_s: float, io_bytes: int = 0, faults: int = 0, state: str = "S") -> Usage:
    return Usage(wanted_s, io_bytes, faults, state)


def silent_for(vigil: Vigil, seconds: float, used: Usage, start: float = 0.0) -> str | None:
    """The ranks mark nothing; every two seconds they have used `used` more."""
    now = start
    while now < start + seconds:
        now += 2.0
        times = (now - start) / 2
        total = usage(used.wanted_cpu_s * times, int(used.io_bytes * times), int(used.major_faults * times), used.state)
        vigil.see_usage({100: total}, now)
        if (why := vigil.judge(now)) is not None:
            return why
    return None


def fresh(phase: Phase = "load", step: int = -1) -> Vigil:
    vigil = Vigil(quiet_limit_s=20, stall_limit_s=1800, started_s=0)
    vigil.see_pulses({0: pulse(step, phase)}, 0.0)
    return vigil


def test_idle_ranks_hang_soon_after_the_quiet_limit() -> None:
    assert silent_for(fresh(), 20, usage(0.0)) is None
    assert "no CPU" in (silent_for(fresh(), 26, usage(0.001)) or "")


@pytest.mark.parametrize("used", [usage(0.5), usage(0, io_bytes=2**21), usage(0, faults=20), usage(0, state="D")])
def test_a_long_load_is_no_hang(used: Usage) -> None:
    assert silent_for(fresh(), 600, used) is None


def test_busy_for_ever_is_a_stall() -> None:
    assert "busy" in (silent_for(fresh(), 1900, usage(1.0)) or "")


def test_spinning_inside_a_step_is_believed_only_for_a_while() -> None:
    assert silent_for(fresh("forward", 5), 26, usage(2.0)) is None
    assert "busy" in (silent_for(fresh("forward", 5), 40, usage(2.0)) or "")
    assert silent_for(fresh("forward", 0), 40, usage(2.0)) is None  # the first steps compile and allocate
    assert silent_for(fresh("eval", 5), 40, usage(2.0)) is None


def test_slow_phases_seen_before_buy_time() -> None:
    vigil = fresh("forward", 5)
    vigil.see_pulses({0: pulse(5, "forward")}, 4.0)  # the forward pass lasted four seconds
    vigil.see_pulses({0: pulse(5, "backward", counter=2, at=4.0)}, 4.0)
    assert silent_for(vigil, 70, usage(2.0), start=4.0) is None
    assert silent_for(vigil, 90, usage(2.0), start=4.0) is not None


def test_the_rank_that_others_wait_for_is_to_blame() -> None:
    assert furthest_behind({0: pulse(3, "communication"), 1: pulse(3, "forward")}) == 1
    assert furthest_behind({0: pulse(4, "backward"), 1: pulse(3, "optimizer")}) == 1
    assert furthest_behind({0: pulse(3, "data"), 1: pulse(3, "backward")}) == 0
    # Both in the same phase: the stack tells who waits.
    level = {0: pulse(3, "communication"), 1: pulse(3, "communication")}
    assert furthest_behind(level, waiting=frozenset({0})) == 1
    assert furthest_behind(level, waiting=frozenset({0, 1})) in (0, 1)
