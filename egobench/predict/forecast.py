"""The prediction of a cell, as plan, sweep and record carry it; made once for all cells that it cannot tell apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from egobench.predict.answer import Memory, Time
from egobench.predict.expected import Surroundings, surroundings_of
from egobench.predict.figures import SHIPPED, Figures
from egobench.predict.lengths import Samples
from egobench.predict.memory import predict_range
from egobench.predict.models import Unknown
from egobench.predict.setting import Setting
from egobench.predict.time import predict_time
from egobench.predict.trial_time import around_steps_s
from egobench.records.predicted import Predicted, VerdictName
from egobench.spec.axes import AXES, MAX
from egobench.spec.site import Site
from egobench.spec.workload import Workload
from egobench.units import format_bytes

IDLE: Final = frozenset({"workload", "learning_rate", "lora_alpha"})
"""Axes that change no byte and no second."""
_READ: Final = tuple(name for name in AXES if name not in IDLE and name != "num_steps")
"""Axes that change a byte or a step's time."""
SURE: Final = 1.05
"""A cell is dropped where even its low end is this many times what the GPU has: of published runs, allocated memory was
never predicted more than 4.8 % too high, and the two that ran although they seemed too large were within 1 % of the
GPU's memory (benchmarks/predictor/memory.md)."""
_MOST_PARTS: Final = 3
_NO_TIME: Final = "a rate of this GPU, precision or network is not known"


@dataclass(eq=False, slots=True)
class Forecast:
    """A prediction, compared by identity: points that share it hold the same one.

    Its fields are those of the record, which is made for few of a plan's many points.
    """

    verdict: VerdictName | None = None
    because: str = ""
    no_time: str = ""
    assumed: str = ""
    constants: str = ""
    predicted_micro_batch_size: int | None = None
    predicted_allocated_bytes: float | None = None
    predicted_low_bytes: float | None = None
    predicted_high_bytes: float | None = None
    usable_bytes: float | None = None
    predicted_step_time_s: float | None = None
    predicted_tokens_per_s: float | None = None
    predicted_trial_s: float | None = None
    least: Memory | None = None
    """Of a cell that cannot fit: with the shortest samples."""

    @property
    def oom(self) -> str:
        """Return why the cell is not worth launching; empty: it may fit, or nobody knows."""
        return "" if self.least is None else _why_not(self.least)

    @property
    def peak_phase(self) -> str:
        """Return when the peak is reached, of a cell that cannot fit."""
        return "" if self.least is None else self.least.peak.name

    @property
    def peak_parts(self) -> str:
        """Return what the peak is made of, of a cell that cannot fit."""
        return "" if self.least is None else _parts(self.least)

    @property
    def predicted(self) -> Predicted:
        """Return the record of it."""
        return Predicted.model_validate({name: getattr(self, name) for name in Predicted.model_fields})


@dataclass(frozen=True)
class Looked:
    """One cell looked at closely: what a forecast is made from."""

    setting: Setting
    memory: Memory
    """With the longest samples."""
    least: Memory
    """With the shortest that they can be: what is certain."""
    time: Time | None

    @property
    def verdict(self) -> VerdictName:
        """Tell whether it fits: only what clearly cannot, even with the shortest samples, is an out-of-memory."""
        if self.least.reserved_low_bytes > SURE * self.least.usable_bytes:
            return "predicted_oom"
        return "fits" if self.memory.verdict == "fits" else "risky"


MOST_ROWS: Final = 1 << 20


def largest(is_good: Callable[[int], bool]) -> int | None:
    """Return the largest number that is good, where all below it are; None where not even 1 is."""
    if not is_good(1):
        return None
    low, high = 1, 2
    while high < MOST_ROWS and is_good(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_good(middle) else (low, middle)
    return low


def nothing(because: str) -> Forecast:
    """Return the forecast that there is none."""
    return Forecast(because=because)


class Forecaster:
    """Predicts the cells of one workload on one site."""

    def __init__(self, around: Surroundings, figures: Figures = SHIPPED) -> None:
        self._around, self.figures = around, figures
        self._steps: dict[tuple[Any, ...], tuple[Forecast, float]] = {}
        self._known: dict[tuple[Any, ...], Forecast] = {}

    @classmethod
    def made(cls, workload: Workload, site: Site, folder: Path, figures: Figures = SHIPPED) -> Self | Forecast:
        """Return the forecaster of a workload on a site, or the forecast that says why there is none."""
        around = surroundings_of(workload, site, folder)
        return nothing(around.because) if isinstance(around, Unknown) else cls(around, figures)

    def of(self, axes: Mapping[str, Any]) -> Forecast:
        """Return the forecast of a cell."""
        read = tuple([axes[name] for name in _READ])
        key = (axes["num_steps"], *read)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._of(axes, read)
        return found

    def _of(self, axes: Mapping[str, Any], key: tuple[Any, ...]) -> Forecast:
        if key not in self._steps:
            if because := _refusal(axes, self._around.samples(axes)):
                return nothing(because)
            looked = self.look(axes)
            around_s = around_steps_s(looked.setting, self._around.workload)
            self._steps[key] = self._forecast(looked, axes, around_s), around_s
            return self._steps[key][0]
        forecast, around_s = self._steps[key]
        return replace(forecast, predicted_trial_s=_trial_s(forecast.predicted_step_time_s, around_s, axes))

    def look(self, axes: Mapping[str, Any]) -> Looked:
        """Predict a cell in all its parts."""
        setting = self._around.setting(axes)
        if axes["micro_batch_size"] == MAX:
            setting = self._around.setting(axes, self.largest(axes) or 1)
        return self.look_at(setting)

    def look_at(self, setting: Setting, *, is_timed: bool = True) -> Looked:
        """Predict a setting of this workload in all its parts."""
        memory, least = predict_range(setting, self.figures.constants, self._around.least(setting))
        return Looked(setting, memory, least, predict_time(setting, self.figures.rates) if is_timed else None)

    def samples(self, axes: Mapping[str, Any]) -> Samples:
        """Return the training samples as a cell sees them."""
        return self._around.samples(axes)

    def largest(self, axes: Mapping[str, Any], *, must_fit: bool = True) -> int | None:
        """Return the largest micro-batch of a cell that fits for certain (or: that may fit); None: not even one."""

        def is_good(num_rows: int) -> bool:
            verdict = self.look_at(self._around.setting(axes, num_rows), is_timed=False).verdict
            return verdict == "fits" if must_fit else verdict != "predicted_oom"

        return largest(is_good)

    def _forecast(self, looked: Looked, axes: Mapping[str, Any], around_s: float) -> Forecast:
        memory, least, time, verdict = looked.memory, looked.least, looked.time, looked.verdict
        samples = self._around.samples(axes)
        return Forecast(
            verdict=verdict,
            no_time="" if time is not None else _NO_TIME,
            assumed=samples.assumed,
            constants=self.figures.name,
            predicted_micro_batch_size=(
                int(looked.setting.axes["micro_batch_size"]) if axes["micro_batch_size"] == MAX else None
            ),
            predicted_allocated_bytes=memory.allocated_bytes,
            predicted_low_bytes=least.reserved_low_bytes,
            predicted_high_bytes=max(memory.reserved_high_bytes, least.reserved_low_bytes),
            usable_bytes=memory.usable_bytes,
            predicted_step_time_s=None if time is None else time.step_time_s,
            predicted_tokens_per_s=None if time is None else time.tokens_per_s,
            predicted_trial_s=_trial_s(None if time is None else time.step_time_s, around_s, axes),
            least=least if verdict == "predicted_oom" else None,
        )


def _trial_s(step_time_s: float | None, around_s: float, axes: Mapping[str, Any]) -> float | None:
    return None if step_time_s is None else around_s + int(axes["num_steps"]) * step_time_s


def _refusal(axes: Mapping[str, Any], samples: Samples) -> str:
    """Return why a cell that no rule drops cannot be predicted; empty: it can."""
    if samples.max_length <= samples.image_tokens:
        return f"an image is {samples.image_tokens} tokens, max_length is {samples.max_length}"
    try:
        re.compile(str(axes["lora_targets"]))
    except re.error as error:
        return f"lora_targets {axes['lora_targets']!r} is no regular expression: {error}"
    return ""


def _why_not(least: Memory) -> str:
    """Return the reason of a cell that cannot fit: number, margin, and what it comes from."""
    used, usable = least.reserved_low_bytes, least.usable_bytes
    return (
        f"predicted to use at least {format_bytes(used)}, {format_bytes(used - usable)} more than the "
        f"{format_bytes(usable)} of the GPU; at the peak ({least.peak.name}): {_parts(least)}"
    )


def _parts(memory: Memory) -> str:
    parts = sorted(memory.peak.parts, key=lambda part: -part.num_bytes)
    shown = [f"{part.name} {format_bytes(part.num_bytes)}" for part in parts[:_MOST_PARTS]]
    return ", ".join(shown) + (", ..." if len(parts) > _MOST_PARTS else "")
