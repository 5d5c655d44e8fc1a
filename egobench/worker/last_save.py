"""Has the ranks save once more before the allocation ends under them, where the trial keeps checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from egobench.probes.pulse import PulseReading
from egobench.records.trial import Trial
from egobench.worker.stop import Halt
from egobench.worker.vigil import STEP_PHASES

_TRAINING: Final = STEP_PHASES | {"save"}


class LastSave:
    """Asks the first rank by a file, which it removes when all ranks have saved (`train/saving.py`)."""

    def __init__(self, trial: Trial, request: Path) -> None:
        self._is_kept = trial.save.acceptable_loss_h is not None
        self._request = request
        self._reason: str | None = None
        self._until_s = float("inf")

    def is_awaited(self, halt: Halt, readings: Mapping[int, PulseReading], now_s: float) -> bool:
        """Return whether the ranks may go on for now: they are about to save.

        Args:
            halt: Why the trial is to end.
            readings: The last pulses of the ranks.
            now_s: Monotonic time, s.

        Raises:
            OSError: the file system does not take the request for now.
        """
        if not self._is_kept or not halt.save_within_s:
            return False
        if self._reason is None:
            # Before the first step there is nothing to save, and after the last one nobody looks for a request.
            if not readings or any(reading.phase not in _TRAINING for reading in readings.values()):
                return False
            self._request.touch()
        if self._reason != halt.kind:
            self._reason = halt.kind
            self._until_s = min(self._until_s, now_s + halt.save_within_s)
        return now_s < self._until_s and self._request.exists()
