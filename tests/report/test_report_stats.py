"""The sample is the trial: closed cases, and what may be called a difference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from egobench.report.stats import judge, paired_difference, paired_ratio, summarise, summarise_ratios, t_quantile


def test_one_trial_is_a_number() -> None:
    summary = summarise([3.0])
    assert summary is not None and (summary.value, summary.low, summary.high, summary.kind) == (
        3.0,
        None,
        None,
        "number",
    )


def test_three_trials_give_median_and_range() -> None:
    summary = summarise([100.0, 60.0, 101.0])
    assert summary is not None and (summary.value, summary.low, summary.high) == (100.0, 60.0, 101.0)
    assert summary.kind == "range"


def test_five_trials_give_the_t_interval() -> None:
    summary = summarise([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776 * math.sqrt(2.5 / 5)  # closed form: s^2 = 2.5, t(4) = 2.776
    assert summary is not None and summary.kind == "interval"
    assert (summary.value, summary.low, summary.high) == pytest.approx((3.0, 3 - half, 3 + half))


def test_t_quantiles_against_tables() -> None:
    known = {1: 12.706, 4: 2.776, 30: 2.042, 40: 2.0211, 60: 2.0003, 120: 1.9799}
    for degrees, value in known.items():
        assert t_quantile(degrees) == pytest.approx(value, abs=2e-4)


def test_interval_covers_as_promised() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for sample in random.normal(10, 2, size=(2000, 5)):
        summary = summarise(list(sample))
        assert summary is not None and summary.low is not None and summary.high is not None
        hits += summary.low <= 10 <= summary.high
    assert 0.935 < hits / 2000 < 0.965


def test_ratio_and_its_inverse_tell_the_same_story() -> None:
    ratios = [1.9, 2.0, 2.3, 2.1, 2.05]
    one, other = summarise_ratios(ratios), summarise_ratios([1 / ratio for ratio in ratios])
    assert one is not None and other is not None and other.low is not None and one.high is not None
    assert one.value == pytest.approx(1 / other.value) and one.high == pytest.approx(1 / other.low)
    assert one.value == pytest.approx(float(np.exp(np.mean(np.log(ratios)))))


def test_pairing_cancels_what_trials_share() -> None:
    drift = {0: 1.0, 1: 1.5, 2: 0.7}
    baseline = {trial: 100 * factor for trial, factor in drift.items()}
    faster = {trial: 104 * factor for trial, factor in drift.items()}
    ratio = paired_ratio(faster, baseline)
    assert ratio is not None and (ratio.low, ratio.high) == pytest.approx((1.04, 1.04))
    assert judge(ratio, neutral=1.0, higher_is_better=True) == "better"
    assert judge(ratio, neutral=1.0, higher_is_better=False) == "worse"


def test_only_common_trials_are_paired() -> None:
    difference = paired_difference({0: 5.0, 2: 7.0}, {1: 1.0, 2: 4.0})
    assert difference is not None and (difference.value, difference.num_trials) == (3.0, 1)
    assert paired_ratio({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize("ratios", [[1.2], [0.99, 1.2], [1.0, 1.0, 1.0], [0.9, 1.1, 1.05, 1.2, 0.99]])
def test_no_difference_is_shown_unless_one_is_excluded(ratios: list[float]) -> None:
    summary = summarise_ratios(ratios)
    assert judge(summary, neutral=1.0, higher_is_better=True) == "no difference shown"


def test_nan_is_no_sample() -> None:
    assert summarise([math.nan]) is None and summarise_ratios([0.0, math.inf]) is None
