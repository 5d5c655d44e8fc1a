"""From step lines of every rank to the measures of a trial. Pure: the same lines always give the same numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from egobench.records.measures import Measures, MergedStep, StepRecord
from egobench.records.rank import RankReport, RankSummary

WARMUP_MADS: Final = 3.0
"""A step is settled when it is no slower than the median of the second half plus this many scaled MADs ..."""
WARMUP_SLACK: Final = 0.05
"""... or plus this share of that median, where the second half hardly varies."""
WARMUP_LOOKAHEAD: Final = 5
"""Most of so many steps from there on must be settled too, so that one lucky step does not end the warm-up."""

_SPLIT = ("data_s", "forward_s", "backward_s", "communication_s", "optimizer_s")
_COUNTS = ("num_samples", "image_tokens", "text_tokens", "supervised_tokens", "padding_tokens")


def merge_steps(per_rank: Sequence[Sequence[StepRecord]]) -> list[MergedStep]:
    """Merge the lines of all ranks, for the steps that every rank finished."""
    if not per_rank:
        return []
    by_step = [{record.step: record for record in lines} for lines in per_rank]
    shared = sorted(set.intersection(*(set(lines) for lines in by_step)))
    merged = [_merge([lines[step] for lines in by_step]) for step in shared]
    first = steady_state([step.step_time_s for step in merged])
    return [step.model_copy(update={"steady": index >= first}) for index, step in enumerate(merged)]


def _merge(ranks: Sequence[StepRecord]) -> MergedStep:
    slowest = max(ranks, key=lambda record: record.step_time_s)
    counts = {name: sum(getattr(record, name) for record in ranks) for name in _COUNTS}
    weight = counts["supervised_tokens"]
    # A rank without supervised tokens has no loss (nan), and must not spoil the mean of the others.
    loss = sum(r.loss * r.supervised_tokens for r in ranks if r.supervised_tokens) / weight if weight else float("nan")
    reserved = [record.peak_reserved_bytes for record in ranks if record.peak_reserved_bytes is not None]
    return MergedStep(
        step=slowest.step,
        step_time_s=slowest.step_time_s,
        **{name: getattr(slowest, name) for name in _SPLIT},
        loss=loss,
        grad_norm=slowest.grad_norm,
        learning_rate=slowest.learning_rate,
        **counts,
        peak_allocated_bytes=max(record.peak_allocated_bytes for record in ranks),
        peak_reserved_bytes=max(reserved) if reserved else None,
    )


def steady_state(step_times: Sequence[float]) -> int:
    """Return the index of the first step of the steady state; the steps before it are warm-up.

    The reference is the second half of the steps: its median and its median absolute deviation (MAD).
    A step is settled when it is at most WARMUP_MADS scaled MADs (or WARMUP_SLACK) slower than that median.
    Warm-up ends at the first settled step from which the median of the next WARMUP_LOOKAHEAD steps is
    settled as well; a single slow step later on stays in, because it is part of what training costs.
    At least the first step is excluded (where there are two), at most half of them.
    """
    num_steps = len(step_times)
    if num_steps < 2:
        return 0
    half = num_steps // 2
    reference = step_times[half:]
    centre = statistics.median(reference)
    spread = 1.4826 * statistics.median(abs(time - centre) for time in reference)
    limit = centre + max(WARMUP_MADS * spread, WARMUP_SLACK * centre)
    for first in range(1, max(1, half)):
        window = step_times[first : first + WARMUP_LOOKAHEAD]
        if step_times[first] <= limit and statistics.median(window) <= limit:
            return first
    return max(1, half)


def summarise(merged: Sequence[MergedStep], rank_reports: Sequence[RankReport]) -> Measures | None:
    """Derive the measures of a trial; None where no step was finished by every rank."""
    if not merged:
        return None
    summaries = [report.summary for report in rank_reports if report.summary is not None]
    steady = [step for step in merged if step.steady] or list(merged)
    times = [step.step_time_s for step in steady]
    total_s = sum(times)
    sums = {name: sum(getattr(step, name) for step in steady) for name in _COUNTS}
    useful = sums["image_tokens"] + sums["text_tokens"]
    split: dict[str, Any] = {name: statistics.fmean(getattr(step, name) for step in steady) for name in _SPLIT}
    return Measures(
        num_steps=len(merged),
        steady_first_step=steady[0].step,
        num_steady_steps=len(steady),
        step_time_s=statistics.fmean(times),
        step_time_p50_s=percentile(times, 0.5),
        step_time_p95_s=percentile(times, 0.95),
        **split,
        tokens_per_s=useful / total_s,
        total_tokens_per_s=(useful + sums["padding_tokens"]) / total_s,
        samples_per_s=sums["num_samples"] / total_s,
        supervised_tokens_per_s=sums["supervised_tokens"] / total_s,
        image_tokens=sums["image_tokens"],
        text_tokens=sums["text_tokens"],
        supervised_tokens=sums["supervised_tokens"],
        padding_tokens=sums["padding_tokens"],
        **_memory(merged, summaries),
        energy_j=_over(sum, [summary.energy_j for summary in summaries]),
        power_w=_over(sum, [summary.power_w for summary in summaries]),
        gpu_utilisation=_over(statistics.fmean, [summary.gpu_utilisation for summary in summaries]),
        num_parameters=max((summary.num_parameters for summary in summaries), default=0),
        num_trainable_parameters=max((summary.num_trainable_parameters for summary in summaries), default=0),
        first_loss=merged[0].loss,
        final_loss=merged[-1].loss,
        before=next((summary.before for summary in summaries if summary.before), None),
        after=next((summary.after for summary in summaries if summary.after), None),
    )


def _memory(merged: Sequence[MergedStep], summaries: Sequence[RankSummary]) -> dict[str, Any]:
    # The step lines alone must do for a trial that failed: only a GPU has a reserved peak.
    on_gpu = merged[-1].peak_reserved_bytes is not None
    seen = max(step.peak_allocated_bytes for step in merged)
    reserved = [step.peak_reserved_bytes for step in merged if step.peak_reserved_bytes is not None]
    rss = [summary.peak_rss_growth_bytes for summary in summaries if summary.peak_rss_growth_bytes is not None]
    nvml = [summary.peak_nvml_used_bytes for summary in summaries if summary.peak_nvml_used_bytes is not None]
    allocated = [summary.peak_allocated_bytes for summary in summaries if summary.peak_allocated_bytes is not None]
    return {
        "peak_allocated_bytes": max([seen, *allocated]) if on_gpu else None,
        "peak_reserved_bytes": max(reserved, default=None),
        "peak_nvml_used_bytes": max(nvml, default=None),
        "peak_rss_growth_bytes": None if on_gpu else max([seen, *rss]),
    }


def _over(reduce: Callable[[Iterable[float]], float], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return reduce(known) if known and len(known) == len(values) else None


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile by linear interpolation between the closest ranks."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
