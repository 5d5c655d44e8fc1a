"""What a handful of trials can say. The sample is the trial; the steps of one trial are correlated.

1 trial: the number. 2-4 trials: the median and the range. 5 and more: the mean and its 95 % interval
(Student's t; for ratios on their logarithms, so that a/b and b/a tell the same story).
Nothing here draws random numbers: a table must come out byte for byte the same every time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["number", "range", "interval"]
Verdict = Literal["better", "worse", "no difference shown"]
INTERVAL_TRIALS: Final = 5
"""From this many trials on an interval is worth its name."""

# Source: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, column 0.975; degrees of freedom 1 to 30.
_T_975: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """A number, and what its trials allow to say about its uncertainty."""

    value: float
    low: float | None
    high: float | None
    num_trials: int

    @property
    def kind(self) -> Kind:
        """Return how to read `low` and `high`."""
        if self.low is None:
            return "number"
        return "range" if self.num_trials < INTERVAL_TRIALS else "interval"

    def excludes(self, value: float) -> bool:
        """Return whether the range or interval exists and does not hold `value`."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


def t_quantile(degrees: int) -> float:
    """Return the 0.975 quantile of Student's t.

    Above 30 degrees of freedom: two terms of the Cornish-Fisher expansion around 1.959964 (error < 2e-4).
    """
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2


def summarise(values: Sequence[float]) -> Summary | None:
    """Summarise one number per trial; None without a finite one."""
    sample = [float(value) for value in values if math.isfinite(value)]
    if not sample:
        return None
    if len(sample) == 1:
        return Summary(sample[0], None, None, 1)
    if len(sample) < INTERVAL_TRIALS:
        return Summary(statistics.median(sample), min(sample), max(sample), len(sample))
    mean = statistics.fmean(sample)
    half = t_quantile(len(sample) - 1) * statistics.stdev(sample) / math.sqrt(len(sample))
    return Summary(mean, mean - half, mean + half, len(sample))


def summarise_ratios(ratios: Sequence[float]) -> Summary | None:
    """Summarise ratios on their logarithms; None without a positive, finite one."""
    logs = [math.log(ratio) for ratio in ratios if ratio > 0 and math.isfinite(ratio)]
    summary = summarise(logs)
    if summary is None:
        return None
    low = None if summary.low is None else math.exp(summary.low)
    high = None if summary.high is None else math.exp(summary.high)
    return Summary(math.exp(summary.value), low, high, summary.num_trials)


def paired_ratio(values: dict[int, float], baseline: dict[int, float]) -> Summary | None:
    """Summarise value over baseline, trial by trial (same seed, interleaved); None without a common trial."""
    return summarise_ratios(_paired(values, baseline, lambda a, b: a / b if b else math.nan))


def paired_difference(values: dict[int, float], baseline: dict[int, float]) -> Summary | None:
    """Summarise value minus baseline, trial by trial; None without a common trial."""
    return summarise(_paired(values, baseline, lambda a, b: a - b))


def _paired(
    values: dict[int, float], baseline: dict[int, float], combine: Callable[[float, float], float]
) -> list[float]:
    return [combine(values[trial], baseline[trial]) for trial in sorted(values.keys() & baseline.keys())]


def judge(summary: Summary | None, *, neutral: float, higher_is_better: bool | None) -> Verdict:
    """Say better or worse only where the range or interval excludes `neutral` (1 for a ratio, 0 for a difference)."""
    if summary is None or higher_is_better is None or not summary.excludes(neutral):
        return "no difference shown"
    return "better" if (summary.value > neutral) == higher_is_better else "worse"


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive numbers."""
    return math.exp(statistics.fmean(math.log(value) for value in values))
