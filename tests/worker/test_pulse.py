"""64 bytes that say where a rank is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import timeit
from pathlib import Path

from egobench.probes.pulse import Pulse, read_pulse


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "ranks" / "0.pulse"
    assert read_pulse(path) is None
    pulse = Pulse(path)
    assert path.stat().st_size == 64
    first = read_pulse(path)
    assert first is not None
    assert (first.phase, first.step, first.pid) == ("launch", -1, os.getpid())
    pulse.mark("backward", 12)
    second = read_pulse(path)
    assert second is not None
    assert (second.phase, second.step, second.counter) == ("backward", 12, 2)
    assert second == pulse.now()


def test_half_a_pulse_is_none(tmp_path: Path) -> None:
    path = tmp_path / "0.pulse"
    for raw in (b"", b"x" * 40, b"x" * 64, bytes(64)):
        path.write_bytes(raw)
        assert read_pulse(path) is None


def test_a_mark_costs_next_to_nothing(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path / "0.pulse")
    best_s = min(timeit.repeat(lambda: pulse.mark("forward", 3), number=2000, repeat=20)) / 2000
    assert best_s < 2e-6


def test_survives_sigkill_and_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom egobench.probes.pulse import Pulse\n"
        "assert 'torch' not in sys.modules\n"
        "pulse = Pulse(Path(sys.argv[1]))\npulse.mark('optimizer', 41)\nos.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "0.pulse"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    reading = read_pulse(path)
    assert reading is not None
    assert (reading.phase, reading.step) == ("optimizer", 41)
