from __future__ import annotations

import time

import pytest
import torch

from egobench.probes.device import Reading, sampler_of, together, usage


def reading(at: float, *, energy_j: float | None = None, power_w: float | None = None) -> Reading:
    return Reading(at, None, power_w, energy_j, 0.5, None, None)


def test_energy_comes_from_the_counter_interpolated_at_both_ends() -> None:
    used = usage([reading(float(at), energy_j=100.0 * at, power_w=1.0) for at in range(11)], 2.5, 7.5)
    assert used.energy_j == pytest.approx(500)
    assert used.power_w == pytest.approx(100)
    assert used.utilisation == 0.5


def test_without_a_counter_power_is_integrated() -> None:
    used = usage([reading(0.0, power_w=100.0), reading(10.0, power_w=200.0)], 0.0, 5.0)
    assert used.energy_j == pytest.approx(5 * 125)


def test_windows_add_up_without_what_lies_between_them() -> None:
    readings = [reading(float(at), energy_j=100.0 * at) for at in range(11)]
    parts = [usage(readings, 1.0, 2.0), usage(readings, 5.0, 8.0)]
    used = together(parts, [1.0, 3.0])
    assert used.energy_j == pytest.approx(400)
    assert used.power_w == pytest.approx(100)
    assert together([usage(readings, 1.0, 2.0), usage([], 5.0, 8.0)], [1.0, 3.0]).energy_j is None
    assert together([], []).power_w is None


def test_nothing_read_is_nothing_known() -> None:
    assert usage([], 0.0, 1.0) == usage([reading(0.5)], 2.0, 3.0)
    assert usage([], 0.0, 1.0).energy_j is None


def test_a_cpu_has_no_sampler() -> None:
    assert sampler_of(torch.device("cpu")) is None


@pytest.mark.gpu
def test_a_busy_gpu_uses_power_and_memory() -> None:
    device = torch.device("cuda", 0)
    sampler = sampler_of(device)
    assert sampler is not None
    matrix = torch.randn(8192, 8192, device=device)
    began = time.time()
    while time.time() - began < 2:
        matrix = (matrix @ matrix).mul_(1e-3)
        torch.cuda.synchronize()
    sampler.stop()
    used = sampler.usage(began, time.time())
    assert used.power_w is not None
    assert used.power_w > 50
    assert used.energy_j == pytest.approx(used.power_w * (time.time() - began), rel=0.2)
    assert used.utilisation is not None
    assert used.utilisation > 0.5
    assert (sampler.peak_used_bytes() or 0) > 2**28
