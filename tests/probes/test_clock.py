from __future__ import annotations

import time

import pytest
import torch

from egobench.probes.clock import PhaseClock


def test_each_phase_lasts_until_the_next_begins() -> None:
    clock = PhaseClock(torch.device("cpu"))
    clock.restart()
    clock.enter("forward")
    time.sleep(0.03)
    clock.enter("backward")
    time.sleep(0.01)
    clock.enter("forward")  # a second micro-step
    time.sleep(0.03)
    lap = clock.lap()
    split = lap.split()
    assert split["forward"] >= 0.06
    assert split["backward"] >= 0.01
    assert split["data"] < 0.06
    assert sum(split.values()) == pytest.approx(lap.step_time_s())


def test_a_step_begins_where_the_last_one_ended() -> None:
    clock = PhaseClock(torch.device("cpu"))
    began = time.perf_counter()
    clock.restart()
    laps = []
    for _ in range(3):
        clock.enter("forward")
        laps.append(clock.lap())
        time.sleep(0.01)
    assert sum(lap.step_time_s() for lap in laps) <= time.perf_counter() - began
    assert laps[1].split()["data"] >= 0.01


def test_what_restart_cuts_out_belongs_to_no_step() -> None:
    clock = PhaseClock(torch.device("cpu"))
    clock.restart()
    clock.lap()
    time.sleep(0.3)
    clock.restart()
    assert clock.lap().step_time_s() < 0.3


@pytest.mark.gpu
def test_events_time_the_device_and_not_the_host() -> None:
    device = torch.device("cuda")
    matrix = torch.randn(8192, 8192, device=device)
    (matrix @ matrix).sum().item()
    clock = PhaseClock(device)
    torch.cuda.synchronize()
    clock.restart()
    clock.enter("forward")
    began = time.perf_counter()
    for _ in range(20):
        matrix = (matrix @ matrix).mul_(1e-3)
    launched_s = time.perf_counter() - began
    lap = clock.lap()
    assert not lap.end.is_past()  # marking did not wait for the device
    lap.end.wait()
    waited_s = time.perf_counter() - began
    assert lap.split()["forward"] > 2 * launched_s
    assert lap.split()["forward"] == pytest.approx(waited_s, rel=0.3)
