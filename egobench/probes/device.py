"""Power, energy, utilisation, clocks and used memory of a GPU, sampled by a thread through NVML."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

INTERVAL_S: Final = 0.1


@dataclass(frozen=True)
class Reading:
    """One look at the GPU; None where the device does not say."""

    at: float
    """Unix time, s."""
    used_bytes: int | None
    power_w: float | None
    energy_j: float | None
    """The driver's counter since it was loaded."""
    utilisation: float | None
    """0-1: share of the last sampling period in which a kernel ran."""
    sm_clock_mhz: int | None
    throttle_reasons: int | None
    """NVML's bit mask of why clocks are lowered; 0: they are not."""


@dataclass(frozen=True)
class Usage:
    """What the readings say about a window of time."""

    energy_j: float | None
    power_w: float | None
    utilisation: float | None


class GpuSampler:
    """Samples one GPU until it is stopped. Use `sampler_of`, which returns None without NVML."""

    def __init__(self, nvml: Any, handle: Any, interval_s: float = INTERVAL_S) -> None:
        self._nvml, self._handle, self._interval_s = nvml, handle, interval_s
        self._stop = threading.Event()
        self.readings: list[Reading] = []
        self._thread = threading.Thread(target=self._run, name="gpu-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last reading and end the thread."""
        self._stop.set()
        self._thread.join()
        self.readings.append(self._read())

    def peak_used_bytes(self) -> int | None:
        """Return the largest used memory, of all processes on the GPU."""
        return max((reading.used_bytes for reading in self.readings if reading.used_bytes is not None), default=None)

    def usage(self, begin: float, end: float) -> Usage:
        """Return the use between two Unix times."""
        return usage(self.readings, begin, end)

    def usage_of(self, spans: Sequence[tuple[float, float]]) -> Usage:
        """Return the use over several windows together, without what lies between them."""
        return together([self.usage(begin, end) for begin, end in spans], [end - begin for begin, end in spans])

    def _run(self) -> None:
        while not self._stop.is_set():
            self.readings.append(self._read())
            self._stop.wait(self._interval_s)

    def _read(self) -> Reading:
        nvml, handle = self._nvml, self._handle
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        power = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        energy = self._ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        return Reading(
            at=time.time(),
            used_bytes=int(memory.used) if memory is not None else None,
            power_w=power / 1e3 if power is not None else None,
            energy_j=energy / 1e3 if energy is not None else None,
            utilisation=rates.gpu / 100 if rates is not None else None,
            sm_clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            throttle_reasons=self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle),
        )

    def _ask(self, question: Any, *arguments: Any) -> Any:
        try:
            return question(*arguments)
        except self._nvml.NVMLError:
            return None


def sampler_of(device: torch.device) -> GpuSampler | None:
    """Start sampling the GPU of a rank; None for a CPU, or where NVML does not answer."""
    if device.type != "cuda":
        return None
    handle = nvml_handle(device)
    return GpuSampler(*handle) if handle else None


def nvml_handle(device: torch.device) -> tuple[Any, Any] | None:
    """Return (pynvml, handle) of a torch device, found by UUID: CUDA_VISIBLE_DEVICES renumbers the others."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
    except pynvml.NVMLError:
        with contextlib.suppress(pynvml.NVMLError):
            return pynvml, pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
        return None


def usage(readings: Sequence[Reading], begin: float, end: float) -> Usage:
    """Return energy, mean power and mean utilisation between two Unix times.

    Energy comes from the driver's counter where there is one (interpolated at both ends), else from the
    power readings (trapezoids).
    """
    counter = [(reading.at, reading.energy_j) for reading in readings if reading.energy_j is not None]
    power = [(reading.at, reading.power_w) for reading in readings if reading.power_w is not None]
    busy = [
        reading.utilisation for reading in readings if reading.utilisation is not None and begin <= reading.at <= end
    ]
    energy: float | None = None
    if len(counter) > 1 and counter[0][1] != counter[-1][1]:
        energy = _at(counter, end) - _at(counter, begin)
    elif len(power) > 1:
        inside = [(begin, _at(power, begin)), *(p for p in power if begin < p[0] < end), (end, _at(power, end))]
        energy = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(inside))
    seconds = end - begin
    return Usage(
        energy_j=energy,
        power_w=energy / seconds if energy is not None and seconds > 0 else None,
        utilisation=sum(busy) / len(busy) if busy else None,
    )


def together(parts: Sequence[Usage], seconds: Sequence[float]) -> Usage:
    """Return the use over windows of these lengths, s: energies add up, utilisation is weighted."""
    energies = [part.energy_j for part in parts if part.energy_j is not None]
    busy = [
        (part.utilisation, length) for part, length in zip(parts, seconds, strict=True) if part.utilisation is not None
    ]
    energy = sum(energies) if energies and len(energies) == len(parts) else None
    total_s, busy_s = sum(seconds), sum(length for _, length in busy)
    return Usage(
        energy_j=energy,
        power_w=energy / total_s if energy is not None and total_s > 0 else None,
        utilisation=sum(share * length for share, length in busy) / busy_s if busy_s > 0 else None,
    )


def _at(series: Sequence[tuple[float, float]], moment: float) -> float:
    """Interpolate linearly; outside the series its nearest value holds."""
    before = [point for point in series if point[0] <= moment]
    after = [point for point in series if point[0] > moment]
    if not before or not after:
        return (before or after)[-1 if before else 0][1]
    (t0, v0), (t1, v1) = before[-1], after[0]
    return v0 + (v1 - v0) * (moment - t0) / (t1 - t0)
