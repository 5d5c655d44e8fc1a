from __future__ import annotations

import math
from typing import Any

import pytest

from egobench.records.measures import Kernels, Measures, MemorySplit, MergedStep, StepRecord
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


def kinds(*, first: float = 1.0) -> Kernels:
    return Kernels(
        num_steps=2, matmul_s=first, attention_s=0.1, elementwise_s=0.1, communication_s=0.0, optimizer_s=0.1,
        other_s=0.0, idle_s=0.2,
    )  # fmt: skip


def parts(parameters: int) -> MemorySplit:
    return MemorySplit(
        parameters_bytes=parameters, gradients_bytes=1, optimizer_bytes=2, activations_bytes=3, other_bytes=4
    )  # fmt: skip


def measured(lines: list[list[StepRecord]], reports: list[RankReport]) -> Measures:
    found = summarise(merge_steps(lines), reports)
    assert found is not None
    return found


def test_utilisation_of_all_ranks_over_the_window() -> None:
    """Warm-up counts neither for the FLOPs nor for the time."""
    flops = {"model_flops": 6e12, "hardware_flops": 8e12}
    lines = [line(n, 100.0 if n == 0 else 2.0, **flops) for n in range(5)]
    slower = [line(n, 100.0 if n == 0 else 2.5, **flops) for n in range(5)]
    merged = merge_steps([lines, slower])
    assert [(step.model_flops, step.hardware_flops) for step in merged] == [(12e12, 16e12)] * 5
    found = measured([lines, slower], [report(0, peak_flops=1e13), report(1, peak_flops=3e13)])
    assert found.model_flops_per_s == pytest.approx(12e12 / 2.5)
    assert found.mfu == pytest.approx(12e12 / 2.5 / 4e13)
    assert found.hfu == pytest.approx(16e12 / 2.5 / 4e13)


@pytest.mark.parametrize("peaks", [[None, None], [1e13, None]])
def test_unknown_hardware_has_flops_but_no_utilisation(peaks: list[float | None]) -> None:
    lines = [line(n, model_flops=1e12, hardware_flops=1e12) for n in range(4)]
    found = measured([lines] * 2, [report(rank, peak_flops=peak) for rank, peak in enumerate(peaks)])
    assert found.model_flops_per_s == 2e12
    assert (found.mfu, found.hfu) == (None, None)


def test_an_unknown_model_has_no_flops() -> None:
    found = measured([[line(n) for n in range(4)]], [report(peak_flops=1e13)])
    assert (found.model_flops_per_s, found.mfu, found.hfu) == (None, None, None)


def test_a_failed_trial_says_its_flops_too() -> None:
    found = measured([[line(n, model_flops=3e12, hardware_flops=4e12) for n in range(3)]], [])
    assert (found.model_flops_per_s, found.mfu) == (3e12, None)


def test_excluded_steps_count_in_no_timing() -> None:
    """A slow step that was profiled neither ends up in the window nor moves where the window begins."""
    times = [9.0, 1.0, 1.0, 50.0, 1.0, 1.0, 50.0, 50.0]
    why = {3: "profiled", 6: "saved", 7: "resumed"}
    flops = {"model_flops": 1e12, "hardware_flops": 1e12}
    lines = [line(n, time_s, excluded=why.get(n, ""), **flops) for n, time_s in enumerate(times)]
    # One rank's word is enough: all ranks waited for it.
    merged = merge_steps([lines, [line(n, time_s, **flops) for n, time_s in enumerate(times)]])
    assert [step.step for step in merged if step.steady] == [1, 2, 4, 5]
    found = summarise(merged, [report(peak_flops=2e12)])
    assert found is not None
    assert (found.num_steps, found.steady_first_step, found.num_steady_steps) == (8, 1, 4)
    assert (found.step_time_s, found.step_time_p95_s) == (1.0, 1.0)
    assert (found.samples_per_s, found.model_flops_per_s) == (4.0, 2e12)
    assert found.image_tokens == 4 * 64
    assert found.final_loss == 2.0  # what was learned counts


def test_a_trial_whose_steps_are_all_excluded_has_no_times() -> None:
    assert summarise(merge_steps([[line(n, excluded="profiled") for n in range(3)]]), [report()]) is None


def test_only_the_warm_up_is_left() -> None:
    """The one step whose time counts is the window, as where a trial has one step at all."""
    found = measured([[line(0, 5.0), line(1, excluded="saved"), line(2, excluded="saved")]], [report()])
    assert (found.steady_first_step, found.num_steady_steps, found.step_time_s) == (0, 1, 5.0)


def test_skipped_updates_are_counted() -> None:
    lines = [line(n, skipped=n in (0, 2)) for n in range(4)]
    assert [step.skipped for step in merge_steps([lines, [line(n) for n in range(4)]])] == [True, False, True, False]
    assert measured([lines], [report()]).num_skipped_steps == 2


def test_what_ranks_say_is_carried() -> None:
    found = measured(
        [[line(n, peak_reserved_bytes=1) for n in range(3)]] * 2,
        [
            report(0, memory=parts(5), kernels=kinds(), peak_allocated_bytes=10, micro_batch_size=16, resumed_at=(2,)),
            report(1, memory=parts(6), peak_allocated_bytes=20, micro_batch_size=16, resumed_at=(2,)),
        ],
    )
    assert found.memory == parts(6)  # of the rank with the largest peak
    assert found.kernels == kinds()
    assert (found.micro_batch_size, found.resumed_at) == (16, (2,))


def test_the_fullest_rank_of_a_cpu_site() -> None:
    reports = [
        report(0, memory=parts(5), peak_rss_growth_bytes=30), report(1, memory=parts(6), peak_rss_growth_bytes=20),
        report(2, peak_rss_growth_bytes=90),  # failed before its first update: it has no parts to show
    ]  # fmt: skip
    assert measured([[line(0)]], reports).memory == parts(5)


def test_records_from_before_these_fields_give_the_same_measures() -> None:
    """Lines and summaries of version 0.3, as they stand in files."""
    old = {
        "step": 0, "step_time_s": 1.0, "data_s": 0.1, "forward_s": 0.3, "backward_s": 0.4, "communication_s": 0.1,
        "optimizer_s": 0.1, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-3, "num_samples": 2,
        "image_tokens": 32, "text_tokens": 16, "supervised_tokens": 4, "padding_tokens": 2,
        "peak_allocated_bytes": 100, "peak_reserved_bytes": None, "started_at": 1.0,
    }  # fmt: skip
    lines = [StepRecord.model_validate(old | {"step": n, "step_time_s": 3.0 - n}) for n in range(3)]
    summary = RankSummary.model_validate(
        {"num_parameters": 10, "num_trainable_parameters": 4, "first_step_at": 0.0, "peak_rss_growth_bytes": 120}
    )
    found = measured([lines], [RankReport(rank=0, outcome="ok", at=0.0, summary=summary)])
    assert found.model_dump(exclude_defaults=True) == {
        "num_steps": 3, "steady_first_step": 1, "num_steady_steps": 2, "step_time_s": 1.5, "step_time_p50_s": 1.5,
        "step_time_p95_s": pytest.approx(1.95), "data_s": 0.1, "forward_s": 0.3, "backward_s": 0.4,
        "communication_s": 0.1, "optimizer_s": 0.1, "tokens_per_s": 32.0, "total_tokens_per_s": pytest.approx(100 / 3),
        "samples_per_s": pytest.approx(4 / 3), "supervised_tokens_per_s": pytest.approx(8 / 3), "image_tokens": 64,
        "text_tokens": 32, "supervised_tokens": 8, "padding_tokens": 4, "peak_allocated_bytes": None,
        "peak_reserved_bytes": None, "peak_nvml_used_bytes": None, "peak_rss_growth_bytes": 120, "energy_j": None,
        "power_w": None, "gpu_utilisation": None, "num_parameters": 10, "num_trainable_parameters": 4,
        "first_loss": 2.0, "final_loss": 2.0,
    }  # fmt: skip
    merged = MergedStep.model_validate(old)
    assert (merged.model_flops, merged.excluded, merged.steady) == (0.0, "", False)
