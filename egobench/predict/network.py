"""Collectives by an alpha-beta model: what every strategy sends, when, and how much of it the computation hides.

Bytes are those that a GPU sends in a ring: (G-1)/G of the tensor for a gather or a reduce-scatter, twice that for an
all-reduce. Over several nodes NCCL builds one ring per network card, so a flat ring runs at what all cards of a node
carry together, or at the node's links, whichever is slower. Where every GPU of a node belongs to a group of its own
(the replicas of a hybrid sharding), each has its share of the cards.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final

from egobench.predict.rates import Rates
from egobench.predict.setting import Machine

DDP_BUCKET: Final = 25 * 2**20
"""Bytes, torch's default."""
ZERO_BUCKET: Final = 500_000_000
"""Numbers, DeepSpeed's default (egobench/train/strategies/zero.py)."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A group of GPUs and how fast they reach each other."""

    num_gpus: int
    bytes_per_s: float
    gather_latency_s: float
    sum_latency_s: float

    def gather_s(self, num_bytes: float, num_calls: float = 1.0) -> float:
        """Return the seconds of gathering a tensor of so many bytes, or of scattering its reduction."""
        if self.num_gpus == 1:
            return 0.0
        return num_calls * self.gather_latency_s + num_bytes * (self.num_gpus - 1) / self.num_gpus / self.bytes_per_s

    def sum_s(self, num_bytes: float, num_calls: float = 1.0) -> float:
        """Return the seconds of an all-reduce."""
        if self.num_gpus == 1:
            return 0.0
        return num_calls * self.sum_latency_s + 2 * num_bytes * (self.num_gpus - 1) / self.num_gpus / self.bytes_per_s


ALONE: Final = Channel(1, 1.0, 0.0, 0.0)


def channels(machine: Machine, num_gpus: int, is_hybrid: bool, rates: Rates) -> tuple[Channel, Channel] | None:
    """Return the group that shards, and that of the replicas; None where a link or the network is not known."""
    if num_gpus == 1:
        return ALONE, ALONE
    gpu, nodes = machine.gpu, num_nodes(machine, num_gpus)
    if gpu.link_bytes_per_s is None or (nodes > 1 and machine.node_bytes_per_s is None):
        return None
    return _channels(gpu.link, gpu.link_bytes_per_s, machine.node_bytes_per_s or 0.0, nodes, num_gpus, is_hybrid, rates)


@functools.lru_cache(maxsize=4096)
def _channels(
    link: str, link_bytes_per_s: float, node_bytes_per_s: float, nodes: int, num_gpus: int, is_hybrid: bool,
    rates: Rates,
) -> tuple[Channel, Channel]:  # fmt: skip
    share = rates.link_fraction if link.startswith("NVLink") else rates.pcie_fraction
    share = rates.bounced_fraction if "no P2P" in link else share
    inside = link_bytes_per_s * share
    outside = node_bytes_per_s * rates.network_fraction
    if not is_hybrid:
        return _channel(num_gpus, nodes, min(inside, outside) if nodes > 1 else inside, rates), ALONE
    replicas = max(2, nodes)  # egobench/train/strategies/fsdp.py
    size = max(1, num_gpus // replicas)
    across = min(inside, outside / size) if nodes > 1 else inside
    return _channel(size, 1, inside, rates), _channel(replicas, nodes, across, rates)


def _channel(num_gpus: int, nodes: int, bytes_per_s: float, rates: Rates) -> Channel:
    ring = rates.latency_s + rates.ring_s * (num_gpus - 1)
    return Channel(num_gpus, bytes_per_s, ring, rates.latency_s + rates.hop_s * math.log2(nodes))


def num_nodes(machine: Machine, num_gpus: int) -> int:
    """Return the nodes that so many GPUs fill."""
    return -(-num_gpus // machine.gpus_per_node)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of what a strategy sends."""

    weights: float
    """All numbers of the model, in the format in which they are gathered."""
    gradients: float
    """Of what is trained, in the format in which they are summed."""
    updated: float
    """16-bit weights that were updated, gathered once an update (ZeRO 1 and 2)."""
    first: float
    """The unit that is gathered before anything can hide it."""
    num_units: float


@dataclass(frozen=True, slots=True)
class Exchange:
    """Seconds of communication, of one update."""

    total_s: float
    exposed_s: float
    """What no computation hides."""
    num_gathered: float
    """How often all weights are gathered or reduced, for the copies that go with it."""


NOTHING: Final = Exchange(0.0, 0.0, 0.0)


def exchange(
    strategy: str, sharding: str, traffic: Traffic, groups: tuple[Channel, Channel], forward_s: float,
    backward_s: float, num_micro_steps: int,
) -> Exchange:  # fmt: skip
    """Return what an update sends, given the seconds of one micro-step's computation."""
    shard, replica = groups
    if shard.num_gpus == 1 and replica.num_gpus == 1:
        return NOTHING
    if strategy == "ddp":
        return _reduced(traffic, shard, backward_s, DDP_BUCKET, 1)
    if strategy in ("zero1", "zero2"):
        often = 1 if strategy == "zero1" else num_micro_steps
        summed = _reduced(traffic, shard, backward_s, 2.0 * ZERO_BUCKET, often)
        # Updated weights are gathered when everything else has been done.
        after = shard.gather_s(traffic.updated)
        return Exchange(summed.total_s + after, summed.exposed_s + after, often + 1.0)
    if strategy in ("fsdp", "zero3"):
        return _sharded(sharding if strategy == "fsdp" else "", traffic, groups, forward_s, backward_s, num_micro_steps)
    return NOTHING


def _reduced(traffic: Traffic, group: Channel, backward_s: float, bucket: float, often: int) -> Exchange:
    """Sum whole gradients behind the backward pass; the last bucket has nothing left to hide behind."""
    calls = math.ceil(traffic.gradients / bucket) if traffic.gradients else 0
    total = group.sum_s(traffic.gradients, calls)
    last = group.sum_s(min(bucket, traffic.gradients)) if calls else 0.0
    return Exchange(often * total, often * (last + max(0.0, total - last - backward_s)), 2.0 * often)


def _sharded(
    sharding: str, traffic: Traffic, groups: tuple[Channel, Channel], forward_s: float, backward_s: float,
    num_micro_steps: int,
) -> Exchange:  # fmt: skip
    """Gather weights for both passes, scatter gradients: as the loop's `accumulate` does it for each sharding."""
    shard, replica = groups
    gather = shard.gather_s(traffic.weights, traffic.num_units)
    scatter = shard.gather_s(traffic.gradients, traffic.num_units) if traffic.gradients else 0.0
    first = shard.gather_s(traffic.first)
    last = scatter / traffic.num_units
    if sharding == "shard_grad_op":
        exposed = first + last + max(0.0, gather - first - forward_s) + max(0.0, scatter - last - backward_s)
        return Exchange(gather + scatter, exposed, 2.0)
    across = replica.sum_s(traffic.gradients / shard.num_gpus, traffic.num_units)
    exposed = first + last + max(0.0, gather - first - forward_s) + max(0.0, gather + scatter - last - backward_s)
    before = exposed * (num_micro_steps - 1)
    after = max(0.0, gather + scatter + across - last - backward_s) - max(0.0, gather + scatter - last - backward_s)
    once = exposed + after + (across / traffic.num_units)
    return Exchange((2 * gather + scatter) * num_micro_steps + across, before + once, 3.0 * num_micro_steps)
