"""Notices that this process was stopped for a while: a suspended job, a laptop that slept."""

from __future__ import annotations

import threading
import time
from typing import Final

PAUSE_S: Final = 10.0
"""No load keeps a thread that touches no file from its turn for so long."""
_TICK_S: Final = 0.5


class PauseMeter(threading.Thread):
    """Ticks beside a trial; a tick that is missing for long means that nothing here ran."""

    def __init__(self) -> None:
        super().__init__(name="ticks", daemon=True)
        self._over = threading.Event()
        self._longest = (0.0, time.time())
        self._last = _now()

    def run(self) -> None:
        """Tick until told to stop."""
        while not self._over.wait(_TICK_S):
            self._tick()

    def _tick(self) -> None:
        last, now = self._last, _now()
        self._longest = max(self._longest, (now[0] - last[0], last[1]))
        self._last = now

    def found(self) -> tuple[float, float] | None:
        """Return how long a pause was, s, and when it began, Unix time, s; None where there was none."""
        last = self._last
        # The tick after a pause may still be to come.
        length_s, began_at = max(self._longest, (_now()[0] - last[0], last[1]))
        return (length_s, began_at) if length_s > PAUSE_S else None

    def stop(self) -> None:
        """End the ticking."""
        self._over.set()


def _now() -> tuple[float, float]:
    # The monotonic clock stands still while the machine sleeps; this one does not. Source: clock_gettime(2).
    return time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
