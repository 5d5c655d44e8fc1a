"""Collectives: volumes of a ring, what overlap hides, and which bandwidth counts."""

from __future__ import annotations

import dataclasses

import pytest

from egobench.hardware import GPUS
from egobench.predict.network import NOTHING, Channel, Traffic, channels, exchange
from egobench.predict.rates import DEFAULT
from egobench.predict.setting import Machine
from tests.predict.time_settings import A100

FREE = Channel(8, 1e9, 0.0, 0.0)
ALONE = Channel(1, 1.0, 0.0, 0.0)
TRAFFIC = Traffic(weights=80e9, gradients=40e9, updated=20e9, first=0.0, num_units=10)


def test_the_volume_of_a_ring() -> None:
    assert FREE.gather_s(8e9) == pytest.approx(7.0)
    assert FREE.sum_s(8e9) == pytest.approx(14.0)
    assert ALONE.gather_s(8e9) == ALONE.sum_s(8e9) == 0.0


def test_what_every_strategy_sends() -> None:
    def total(strategy: str, steps: int = 1, sharding: str = "full_shard") -> float:
        return exchange(strategy, sharding, TRAFFIC, (FREE, ALONE), 0.0, 0.0, steps).total_s

    share = 7 / 8
    assert total("ddp") == total("ddp", 4) == pytest.approx(2 * 40 * share)
    assert total("zero1") == pytest.approx((2 * 40 + 20) * share)
    assert total("zero2", 4) == pytest.approx((4 * 2 * 40 + 20) * share)
    assert total("fsdp") == total("zero3") == pytest.approx((2 * 80 + 40) * share)
    assert total("fsdp", 4) == pytest.approx(4 * total("fsdp"))
    assert total("fsdp", 4, "shard_grad_op") == pytest.approx((80 + 40) * share)
    assert exchange("single", "full_shard", TRAFFIC, (ALONE, ALONE), 1.0, 1.0, 1) == NOTHING


def test_a_hybrid_gathers_inside_and_sums_a_shard_outside() -> None:
    outside = Channel(4, 0.5e9, 0.0, 0.0)
    found = exchange("fsdp", "hybrid_shard", TRAFFIC, (FREE, outside), 1e9, 1e9, 3)
    inside = (2 * 80 + 40) * 7 / 8
    assert found.total_s == pytest.approx(3 * inside + 2 * (40 / 8) * 3 / 4 / 0.5)


def test_a_long_computation_hides_all_but_the_ends() -> None:
    hidden = exchange("fsdp", "full_shard", TRAFFIC, (FREE, ALONE), 1e3, 1e3, 1)
    bare = exchange("fsdp", "full_shard", TRAFFIC, (FREE, ALONE), 0.0, 0.0, 1)
    assert bare.exposed_s == pytest.approx(bare.total_s)
    assert hidden.exposed_s == pytest.approx(40 * 7 / 8 / 10)
    assert exchange("ddp", "", TRAFFIC, (FREE, ALONE), 1e3, 1e3, 1).exposed_s < 0.001 * 2 * 40 * 7 / 8


@pytest.mark.parametrize(("tokens", "is_hidden"), [(4000, True), (500, False)])
def test_the_bound_of_overlap(tokens: int, is_hidden: bool) -> None:
    """Gathering N numbers of 2 bytes hides behind 2 N T FLOPs where T is above speed over bandwidth."""
    numbers, flops_per_s, bytes_per_s = 7e9, 250e12, 180e9
    assert 500 < flops_per_s / bytes_per_s < 4000
    group = Channel(1024, bytes_per_s, 0.0, 0.0)
    traffic = Traffic(2 * numbers, 2 * numbers, 0.0, 0.0, 1e9)
    forward_s = 2 * numbers * tokens / flops_per_s
    found = exchange("fsdp", "full_shard", traffic, (group, ALONE), forward_s, 2 * forward_s, 1)
    assert (found.exposed_s < 0.01 * found.total_s) == is_hidden


def test_several_nodes_run_at_what_all_their_cards_carry() -> None:
    inside, outside = (channels(A100, number, False, DEFAULT) for number in (8, 64))
    assert inside is not None
    assert outside is not None
    assert inside[0].bytes_per_s == pytest.approx(300e9 * DEFAULT.link_fraction)
    assert outside[0].bytes_per_s == pytest.approx(200e9 * DEFAULT.network_fraction)
    assert outside[0].gather_latency_s > inside[0].gather_latency_s


def test_replicas_share_the_cards_of_a_node() -> None:
    found = channels(A100, 64, True, DEFAULT)
    assert found is not None
    shard, replica = found
    assert (shard.num_gpus, replica.num_gpus) == (8, 8)
    assert replica.bytes_per_s == pytest.approx(200e9 * DEFAULT.network_fraction / 8)


def test_a_measured_all_reduce_over_four_nodes() -> None:
    """ml-engineering's table: 237 microseconds for 8 MiB, 22 ms for 1 GiB, at about 100 GB/s of cards per node."""
    machine = Machine(GPUS["A100-80GB SXM"], 8, 104e9)
    found = channels(machine, 32, False, DEFAULT)
    assert found is not None
    assert found[0].sum_s(8 * 2**20, 1) == pytest.approx(237e-6, rel=0.15)
    assert found[0].sum_s(2**30, 1) == pytest.approx(2**30 / 48.59e9, rel=0.05)


def test_pcie_without_peers_is_slower_than_with() -> None:
    without = Machine(GPUS["RTX4090-24GB"], 8)
    with_peers = dataclasses.replace(without, gpu=dataclasses.replace(without.gpu, link="PCIe4"))
    slow, fast = channels(without, 2, False, DEFAULT), channels(with_peers, 2, False, DEFAULT)
    assert slow is not None
    assert fast is not None
    assert slow[0].bytes_per_s < fast[0].bytes_per_s < 31e9
