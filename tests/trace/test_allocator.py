"""The replayed allocator does what torch's own does on a GPU, by the rules of its source."""

from __future__ import annotations

import random

import pytest
import torch

from egobench.trace.allocator import MIB, Allocator, Replayed, replay
from egobench.trace.storages import Log

KIB = 1024


@pytest.mark.parametrize(
    ("size", "reserved", "allocated"),
    [
        (512, 2 * MIB, 512),
        (MIB, 2 * MIB, MIB),
        (MIB + 512, 20 * MIB, MIB + 512),
        (10 * MIB - 512, 20 * MIB, 10 * MIB - 512),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),  # a rest of up to 1 MiB is not worth splitting
        (100 * MIB + 512, 102 * MIB, 100 * MIB + 512),
    ],
)
def test_a_first_block_gets_a_segment_of_its_kind(size: int, reserved: int, allocated: int) -> None:
    allocator = Allocator()
    allocator.take(size)
    assert (allocator.reserved_bytes, allocator.allocated_bytes) == (reserved, allocated)


def test_small_and_large_blocks_do_not_share_segments() -> None:
    allocator = Allocator()
    allocator.give_back(allocator.take(100 * MIB))
    allocator.take(512 * KIB)
    assert allocator.reserved_bytes == 102 * MIB
    allocator.take(60 * MIB)
    allocator.take(40 * MIB)
    assert allocator.reserved_bytes == 102 * MIB  # split, not asked for again


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    allocator = Allocator()
    blocks = [allocator.take(size * MIB) for size in (40, 30, 50)]
    for block in blocks:
        allocator.give_back(block)
    allocator.take(30 * MIB)
    allocator.take(40 * MIB)
    allocator.take(50 * MIB)
    assert allocator.reserved_bytes == 120 * MIB


def test_neighbours_that_are_free_become_one() -> None:
    allocator = Allocator()
    allocator.give_back(allocator.take(90 * MIB))
    parts = [allocator.take(30 * MIB) for _ in range(3)]
    allocator.give_back(parts[0])
    allocator.give_back(parts[2])
    allocator.take(60 * MIB)  # 30 + 30, but not beside each other
    assert allocator.reserved_bytes == 150 * MIB
    allocator.give_back(parts[1])
    allocator.take(90 * MIB)
    assert allocator.reserved_bytes == 150 * MIB


def test_streams_share_nothing() -> None:
    allocator = Allocator()
    allocator.give_back(allocator.take(64 * MIB, stream=0))
    allocator.take(64 * MIB, stream=7)
    assert allocator.reserved_bytes == 128 * MIB


def test_emptying_gives_back_whole_segments_only() -> None:
    allocator = Allocator()
    free, shared = allocator.take(64 * MIB), allocator.take(32 * MIB)
    allocator.give_back(free)
    allocator.give_back(shared)
    allocator.take(16 * MIB)  # half of the second
    allocator.empty()
    assert allocator.reserved_bytes == 32 * MIB


def test_a_log_is_replayed_from_where_it_counts() -> None:
    log = Log(events=[
        (1, 64 * MIB), (1, -64 * MIB),  # while the model is built
        (2, 10 * MIB), (3, 0), (4, 32 * MIB), (2, 10 * MIB), (4, -32 * MIB), (5, 32 * MIB),
    ])  # fmt: skip
    # The second storage grows: its room of 20 MiB comes before that of 10 goes.
    assert replay(log, empty_at=2) == Replayed(allocated_bytes=62 * MIB, reserved_bytes=62 * MIB)
    assert replay(log, empty_at=0).reserved_bytes == 64 * MIB  # all found room in the first segment
    log.streams[5] = 1
    assert replay(log, empty_at=2).reserved_bytes == 94 * MIB


def test_blocks_are_never_lost() -> None:
    dice = random.Random(3)
    allocator, held = Allocator(), []
    for _ in range(3000):
        if held and dice.random() < 0.5:
            allocator.give_back(held.pop(dice.randrange(len(held))))
        else:
            held.append(allocator.take(512 * dice.choice([1, 7, 3000, 40_000, 200_000]), dice.randrange(2)))
        assert allocator.allocated_bytes == sum(block.size for block in held) <= allocator.reserved_bytes
    for block in held:
        allocator.give_back(block)
    allocator.empty()
    assert (allocator.reserved_bytes, allocator.allocated_bytes) == (0, 0)


@pytest.mark.gpu
def test_torch_does_the_same() -> None:
    dice = random.Random(5)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    allocator, held = Allocator(), []
    for _ in range(400):
        if held and dice.random() < 0.5:
            tensor, block = held.pop(dice.randrange(len(held)))
            del tensor
            allocator.give_back(block)
        else:
            size = 512 * dice.choice([1, 7, 3000, 40_000, 200_000])
            held.append((torch.empty(size, dtype=torch.uint8, device="cuda"), allocator.take(size)))
        assert torch.cuda.memory_allocated() - before[1] == allocator.allocated_bytes
    # Segments that were there before may serve the first small blocks.
    assert abs(torch.cuda.memory_reserved() - before[0] - allocator.reserved_bytes) <= 20 * MIB
