"""Turn laps and device scalars into step lines, a few steps late, so that the loop never waits for the device."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch

from egobench.probes.clock import Lap, PhaseClock
from egobench.probes.memory import MemoryProbe, Peak
from egobench.records.measures import Excluded, StepRecord
from egobench.records.store import disk_errors
from egobench.train.errors import Diverged

DEPTH: Final = 8
"""Steps that may be under way on the device; only then does the loop wait for the oldest."""
MOST_SKIPPED: Final = 20
"""Skipped updates in a row. A loss scale halves at each, from 2^16: it is below 1 by then, and no longer the cause."""


@dataclass(frozen=True)
class Scalars:
    """What the host knows about a step when it has been launched."""

    step: int
    learning_rate: float
    counts: Mapping[str, int]
    """num_samples, the four token counts, and FLOPs where they are known."""
    excluded: Excluded = ""
    """Why the step is in no timing."""
    scales_loss: bool = False
    """A gradient norm that is not finite means that the loss scaler skipped the update."""


@dataclass(frozen=True)
class _Pending:
    scalars: Scalars
    lap: Lap
    loss_sum: torch.Tensor
    grad_norm: torch.Tensor
    peak: Peak
    started_at: float


class StepRecorder:
    """Writes one line per step, in order, as soon as the device is done with the step.

    Lines go to the file unbuffered: a rank that is killed leaves the steps that it finished.
    """

    def __init__(
        self,
        path: Path,
        clock: PhaseClock,
        memory: MemoryProbe,
        device: torch.device,
        earlier: Sequence[StepRecord] = (),
    ) -> None:
        """Open the file; `earlier`: the lines that it begins with, of the attempt that this one goes on from."""
        self.records = list(earlier)
        self._clock, self._memory, self._device = clock, memory, device
        self._pending: deque[_Pending] = deque()
        self._started_at = time.time()
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("ab", buffering=0)

    def restart(self) -> None:
        """Begin the next step now."""
        self._started_at = time.time()
        self._clock.restart()

    def finish(self, scalars: Scalars, loss_sum: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """Take a step that has been launched; `loss_sum` and `grad_norm` are scalars on the device.

        Raises:
            Diverged: this step's loss or gradient norm is not finite, or that of a step read only now.
        """
        loss_sum, grad_norm = self._to_host(loss_sum), self._to_host(grad_norm)
        lap = self._clock.lap()
        self._pending.append(_Pending(scalars, lap, loss_sum, grad_norm, self._memory.peak(), self._started_at))
        self._started_at = time.time()
        while self._pending and (len(self._pending) > DEPTH or self._pending[0].lap.end.is_past()):
            self._write(self._pending.popleft())

    def drain(self) -> None:
        """Wait for the steps under way and write them."""
        while self._pending:
            self._write(self._pending.popleft())

    def _to_host(self, value: torch.Tensor) -> torch.Tensor:
        value = value.detach()
        if value.device.type == "cpu":
            return value
        # Valid once the lap's end, which is recorded after the copy, is past.
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)

    def _write(self, pending: _Pending) -> None:
        pending.lap.end.wait()
        record = _record(pending)
        self.records.append(record)
        with disk_errors(Path(self._stream.name)):
            self._stream.write(json.dumps(record.model_dump()).encode() + b"\n")  # keeps nan, unlike pydantic
        if record.skipped:
            last = self.records[-MOST_SKIPPED:]
            if len(last) == MOST_SKIPPED and all(each.skipped for each in last):
                raise Diverged(record.step, "gradient norm")
            return
        for what, value in (("loss", record.loss), ("gradient norm", record.grad_norm)):
            # A rank whose samples supervise nothing has no loss of its own.
            if not math.isfinite(value) and not (what == "loss" and record.supervised_tokens == 0):
                raise Diverged(record.step, what)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left; after a failure only the steps that the device has certainly finished.

        Raises:
            Diverged: as `finish` does, or no update was made because the loss scaler skipped all of them.
        """
        try:
            if kind is None:
                self.drain()
                if self.records and all(record.skipped for record in self.records):
                    raise Diverged(self.records[-1].step, "gradient norm")
            else:
                self._salvage()
        finally:
            self._stream.close()

    def _salvage(self) -> None:
        # The device may be beyond answering, and a step read now may have diverged: the first error is the one to tell.
        try:
            while self._pending and self._pending[0].lap.end.is_past():
                self._write(self._pending.popleft())
        except (RuntimeError, Diverged):
            return


def _record(pending: _Pending) -> StepRecord:
    scalars, split = pending.scalars, pending.lap.split()
    supervised = scalars.counts["supervised_tokens"]
    return StepRecord(
        step=scalars.step,
        step_time_s=pending.lap.step_time_s(),
        data_s=split.get("data", 0.0),
        forward_s=split.get("forward", 0.0),
        backward_s=split.get("backward", 0.0),
        communication_s=split.get("communication", 0.0),
        optimizer_s=split.get("optimizer", 0.0),
        loss=pending.loss_sum.item() / supervised if supervised else float("nan"),
        grad_norm=pending.grad_norm.item(),
        learning_rate=scalars.learning_rate,
        num_samples=scalars.counts["num_samples"],
        image_tokens=scalars.counts["image_tokens"],
        text_tokens=scalars.counts["text_tokens"],
        supervised_tokens=supervised,
        padding_tokens=scalars.counts["padding_tokens"],
        peak_allocated_bytes=pending.peak.allocated_bytes,
        peak_reserved_bytes=pending.peak.reserved_bytes,
        model_flops=float(scalars.counts.get("model_flops", 0)),
        hardware_flops=float(scalars.counts.get("hardware_flops", 0)),
        excluded=scalars.excluded,
        skipped=scalars.scales_loss and not math.isfinite(pending.grad_norm.item()),
        started_at=pending.started_at,
    )
