"""What was predicted of a cell when it was planned; no measurement, and never shown as one."""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

from pydantic import SerializerFunctionWrapHandler, model_serializer

from egobench.spec.strict import Record

VerdictName = Literal["fits", "risky", "predicted_oom"]
VERDICTS: Final[tuple[VerdictName, ...]] = get_args(VerdictName)


class Predicted(Record):
    """One cell's prediction; a number that nobody could give is None, and `because` or `no_time` says why."""

    verdict: VerdictName | None = None
    """`predicted_oom`: even the low end is clearly more than the GPU has; `risky`: the high end is; None: not known."""
    because: str = ""
    """Why nothing is predicted of memory (nor of time)."""
    no_time: str = ""
    """Why nothing is predicted of time, where something is of memory."""
    assumed: str = ""
    """What was taken for granted."""
    constants: str = ""
    """Which constants it was made with: the shipped ones, or a calibration file's name."""
    predicted_micro_batch_size: int | None = None
    """The largest that fits, where the cell leaves it to a search."""
    predicted_allocated_bytes: float | None = None
    """Counterpart of max_memory_allocated, the rank's peak."""
    predicted_low_bytes: float | None = None
    """Of the GPU's memory, used at least: shortest samples, no fragmentation."""
    predicted_high_bytes: float | None = None
    """Of the GPU's memory, used with longest samples and the usual fragmentation."""
    usable_bytes: float | None = None
    """Of the GPU."""
    peak_phase: str = ""
    """When the peak is reached; of cells that cannot fit."""
    peak_parts: str = ""
    """What the peak is made of, largest first; of cells that cannot fit."""
    predicted_step_time_s: float | None = None
    predicted_tokens_per_s: float | None = None
    """Effective, over all ranks."""
    predicted_trial_s: float | None = None
    """Start-up, all steps, and evaluation."""

    @model_serializer(mode="wrap")
    def _without_what_says_nothing(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in whole(self).items() if value not in (None, "")}

    @property
    def margin_bytes(self) -> float | None:
        """Return what is left of the GPU at the low end; less than nothing: it cannot fit."""
        if self.usable_bytes is None or self.predicted_low_bytes is None:
            return None
        return self.usable_bytes - self.predicted_low_bytes
