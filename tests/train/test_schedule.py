from __future__ import annotations

import pytest

from egobench.train.schedule import Schedule


def test_warms_up_to_the_peak_then_falls_to_nothing() -> None:
    cosine = Schedule("cosine", 1.0, 12, 4)
    assert [cosine.at(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert cosine.at(8) == pytest.approx(0.5)
    assert 0 < cosine.at(11) < 0.05
    assert cosine.at(12) == pytest.approx(0)


def test_other_shapes() -> None:
    assert Schedule("linear", 2.0, 10, 0).at(5) == pytest.approx(1.0)
    assert {Schedule("constant", 2.0, 10, 2).at(step) for step in range(1, 10)} == {2.0}
