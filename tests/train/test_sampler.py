from __future__ import annotations

import pytest

from egobench.data.batches import in_order
from egobench.train.sampler import Sampler


def test_every_epoch_sees_every_sample_once_in_an_order_of_its_own() -> None:
    sampler = Sampler(10, seed=3)
    row = [index for _ in range(5) for index in sampler.take(4)]
    assert sorted(row[:10]) == sorted(row[10:]) == list(range(10))
    assert row[:10] != row[10:]
    assert Sampler(10, seed=3).take(20) == row
    assert Sampler(10, seed=4).take(20) != row


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_the_same_samples_share_a_micro_batch_for_any_number_of_ranks(num_ranks: int) -> None:
    batch = Sampler(100, seed=0).take(16)
    dealt = [in_order(batch, [1] * len(batch), 4)[rank::num_ranks] for rank in range(num_ranks)]
    assert {len(micro) for micro in dealt} == {4 // num_ranks}
    assert sorted(tuple(chunk) for micro in dealt for chunk in micro) == sorted(
        tuple(batch[start : start + 4]) for start in range(0, 16, 4)
    )


@pytest.mark.parametrize("num_taken", [0, 3, 7, 10, 17, 25])
def test_goes_on_from_its_state(num_taken: int) -> None:
    sampler = Sampler(10, seed=1)
    sampler.take(num_taken)
    assert Sampler(10, 1, sampler.state).take(13) == sampler.take(13)


def test_a_batch_may_be_larger_than_an_epoch() -> None:
    taken = Sampler(3, seed=0).take(8)
    assert sorted(taken[:3]) == sorted(taken[3:6]) == [0, 1, 2]
