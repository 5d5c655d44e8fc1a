from __future__ import annotations

import math
from typing import Any

import pytest

from egobench.records.measures import StepRecord
from egobench.records.rank import RankReport, RankSummary
from egobench.records.summary import merge_steps, percentile, steady_state, summarise


def line(step: int, time_s: float = 1.0, **other: Any) -> StepRecord:
    values: dict[str, Any] = {
        "data_s": 0.1 * time_s, "forward_s": 0.3 * time_s, "backward_s": 0.4 * time_s, "communication_s": 0.1 * time_s,
        "optimizer_s": 0.1 * time_s, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-3, "num_samples": 2,
        "image_tokens": 32, "text_tokens": 16, "supervised_tokens": 4, "padding_tokens": 2,
        "peak_allocated_bytes": 100 + step,
    }  # fmt: skip
    return StepRecord(step=step, step_time_s=time_s, **(values | other))


def report(rank: int = 0, **other: Any) -> RankReport:
    summary = RankSummary(num_parameters=10, num_trainable_parameters=4, first_step_at=0.0, **other)
    return RankReport(rank=rank, outcome="ok", at=0.0, summary=summary)


def test_times_are_the_slowest_ranks_and_counts_are_sums() -> None:
    (step,) = merge_steps(
        [[line(0, 1.0, loss=2.0, supervised_tokens=3)], [line(0, 2.0, loss=4.0, supervised_tokens=1)]]
    )
    assert (step.step_time_s, step.forward_s, step.backward_s) == (2.0, 0.6, 0.8)
    assert step.loss == pytest.approx((2 * 3 + 4 * 1) / 4)
    assert (step.num_samples, step.image_tokens, step.supervised_tokens) == (4, 64, 4)


def test_a_rank_that_supervises_nothing_does_not_spoil_the_loss() -> None:
    (step,) = merge_steps([[line(0, loss=2.0)], [line(0, loss=math.nan, supervised_tokens=0)]])
    assert step.loss == 2.0


def test_only_steps_that_every_rank_finished_count() -> None:
    assert [step.step for step in merge_steps([[line(0), line(1), line(2)], [line(0), line(1)]])] == [0, 1]
    assert merge_steps([[line(0)], []]) == []
    assert merge_steps([]) == []


@pytest.mark.parametrize(
    ("times", "first"),
    [
        ([], 0),
        ([5.0], 0),
        ([5.0, 1.0], 1),
        ([9.0] + [1.0] * 9, 1),
        ([9.0, 3.0, 2.0] + [1.0] * 9, 3),
        ([9.0, 3.0, 1.0, 3.0, 3.0, 3.0] + [1.0] * 12, 6),  # one lucky step does not end the warm-up
        ([9.0] + [1.0, 1.0, 7.0, 1.0] * 3, 1),  # one slow step later on belongs to training
        ([2.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99], 1),
        ([10.0] * 12 + [1.0] * 8, 10),  # at most half is excluded
    ],
)
def test_warm_up_ends_where_steps_settle(times: list[float], first: int) -> None:
    assert steady_state(times) == first


def test_measures_of_the_steady_window() -> None:
    merged = merge_steps([[line(n, 10.0 if n == 0 else 1.0 + 0.5 * (n % 3)) for n in range(9)]] * 2)
    measures = summarise(merged, [report(0), report(1)])
    assert measures is not None
    assert (measures.num_steps, measures.steady_first_step, measures.num_steady_steps) == (9, 1, 8)
    assert measures.step_time_s == pytest.approx(12.5 / 8)
    parts = (measures.data_s, measures.forward_s, measures.backward_s, measures.communication_s, measures.optimizer_s)
    assert sum(parts) == pytest.approx(12.5 / 8)
    assert measures.image_tokens == 8 * 64
    assert measures.tokens_per_s == pytest.approx(8 * 96 / 12.5)
    assert measures.total_tokens_per_s == pytest.approx(8 * 100 / 12.5)
    assert measures.samples_per_s == pytest.approx(8 * 4 / 12.5)
    assert measures.supervised_tokens_per_s == pytest.approx(8 * 8 / 12.5)
    assert (measures.step_time_p50_s, measures.step_time_p95_s) == (1.5, 2.0)
    assert (measures.num_parameters, measures.num_trainable_parameters) == (10, 4)


def test_cpu_memory_is_growth_of_the_resident_set() -> None:
    merged = merge_steps([[line(0), line(1)], [line(0), line(1, peak_allocated_bytes=500)]])
    measures = summarise(merged, [report(peak_rss_growth_bytes=300)])
    assert measures is not None
    assert (measures.peak_allocated_bytes, measures.peak_rss_growth_bytes) == (None, 500)
    assert measures.peak_memory_bytes == 500


def test_gpu_memory_energy_and_power() -> None:
    merged = merge_steps([[line(n, peak_reserved_bytes=900) for n in range(3)]] * 2)
    used = {"energy_j": 10.0, "power_w": 5.0, "gpu_utilisation": 0.5, "peak_nvml_used_bytes": 1000}
    measures = summarise(merged, [report(0, **used), report(1, **used | {"gpu_utilisation": 1.0})])
    assert measures is not None
    assert (measures.peak_allocated_bytes, measures.peak_reserved_bytes) == (102, 900)
    assert measures.peak_rss_growth_bytes is None
    assert (measures.energy_j, measures.power_w, measures.gpu_utilisation) == (20.0, 10.0, 0.75)
    partial = summarise(merged, [report(0, **used), report(1)])
    assert partial is not None
    assert partial.energy_j is None  # half of the GPUs is not the trial's energy


def test_nothing_finished_is_no_measures() -> None:
    assert summarise([], []) is None


def test_a_failed_trial_is_summed_up_from_its_lines_alone() -> None:
    measures = summarise(merge_steps([[line(0), line(1)]]), [])
    assert measures is not None
    assert measures.peak_rss_growth_bytes == 101


def test_percentiles_interpolate() -> None:
    assert percentile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert percentile([7.0], 0.95) == 7.0
    assert percentile([0.0, 10.0], 0.95) == 9.5
