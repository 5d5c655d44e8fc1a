"""From step lines of every rank to the measures of a trial. Pure: the same lines always give the same numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from egobench.records.measures import Measures, MemorySplit, MergedStep, StepRecord
from egobench.records.rank import RankReport, RankSummary

WARMUP_MADS: Final = 3.0
"""A step is settled when it is no slower than the median of the second half plus this many scaled MADs ..."""
WARMUP_SLACK: Final = 0.05
"""... or plus this share of that median, where the second half hardly varies."""
WARMUP_LOOKAHEAD: Final = 5
"""Most of so many steps from there on must be settled too, so that one lucky step does not end the warm-up."""

_SPLIT = ("data_s", "forward_s", "backward_s", "communication_s", "optimizer_s")
_COUNTS = ("num_samples", "image_tokens", "text_tokens", "supervised_tokens", "padding_tokens")
_FLOPS = ("model_flops", "hardware_flops")


def merge_steps(per_rank: Sequence[Sequence[StepRecord]]) -> list[MergedStep]:
    """Merge the lines of all ranks, for the steps that every rank finished."""
    if not per_rank:
        return []
    by_step = [{record.step: record for record in lines} for lines in per_rank]
    shared = sorted(set.intersection(*(set(lines) for lines in by_step)))
    merged = [_merge([lines[step] for lines in by_step]) for step in shared]
    timed = [step for step in merged if not step.excluded]
    steady = {step.step for step in timed[steady_state([step.step_time_s for step in timed]) :]}
    return [step.model_copy(update={"steady": step.step in steady}) for step in merged]


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
        **{name: sum(getattr(record, name) for record in ranks) for name in _FLOPS},
        peak_allocated_bytes=max(record.peak_allocated_bytes for record in ranks),
        peak_reserved_bytes=max(reserved) if reserved else None,
        excluded=next((record.excluded for record in ranks if record.excluded), ""),
        skipped=any(record.skipped for record in ranks),
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
    """Derive the measures of a trial; None where every rank finished no step, or none whose time counts."""
    steady = [step for step in merged if step.steady] or [step for step in merged if not step.excluded]
    if not steady:
        return None
    summaries = [report.summary for report in rank_reports if report.summary is not None]
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
        **_utilisation(steady, summaries),
        memory=_split(summaries),
        kernels=next((summary.kernels for summary in summaries if summary.kernels), None),
        micro_batch_size=next((s.micro_batch_size for s in summaries if s.micro_batch_size is not None), None),
        num_skipped_steps=sum(step.skipped for step in merged),
        resumed_at=max((summary.resumed_at for summary in summaries), default=()) or _resumed_at(merged),
        before=next((summary.before for summary in summaries if summary.before), None),
        after=next((summary.after for summary in summaries if summary.after), None),
    )


def _utilisation(steady: Sequence[MergedStep], summaries: Sequence[RankSummary]) -> dict[str, Any]:
    """Return FLOP/s over the window, and their share of the datasheet's peak of all ranks."""
    total_s = sum(step.step_time_s for step in steady)
    # 0 stands for a model whose FLOPs are not known.
    model, hardware = (
        sum(getattr(step, name) for step in steady) / total_s
        if all(getattr(step, name) for step in steady) else None
        for name in _FLOPS
    )  # fmt: skip
    peak = _over(sum, [summary.peak_flops for summary in summaries])
    return {
        "model_flops_per_s": model,
        "mfu": model / peak if model is not None and peak else None,
        "hfu": hardware / peak if hardware is not None and peak else None,
    }


def _split(summaries: Sequence[RankSummary]) -> MemorySplit | None:
    """Return what the largest peak of all ranks consists of."""
    known = [summary for summary in summaries if summary.memory is not None]
    fullest = max(known, key=lambda one: one.peak_allocated_bytes or one.peak_rss_growth_bytes or 0, default=None)
    return fullest.memory if fullest is not None else None


def _resumed_at(merged: Sequence[MergedStep]) -> tuple[int, ...]:
    """Return where later attempts went on, as far as the lines of a trial tell that has no summary: it failed."""
    cold = [step.step for step in merged if step.excluded == "resumed"]
    return tuple(step for step in cold if step - 1 not in cold)


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
