"""What a log of storages makes torch's caching allocator reserve of a GPU: the same sizes, splits and best fits.

After c10/cuda/CUDACachingAllocator.cpp of torch 2.11, with its defaults: no expandable segments, no limit to splitting.
A GPU that never runs full is replayed: nothing is given back because another block finds no room.
"""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from egobench.trace.storages import ROUND_BYTES, Log

MIB: Final = 2**20
SMALL_BYTES: Final = MIB
"""Up to this, blocks share segments of `SMALL_SEGMENT_BYTES` in a pool of their own."""
SMALL_SEGMENT_BYTES: Final = 2 * MIB
LARGE_SEGMENT_BYTES: Final = 20 * MIB
"""Of blocks below `OWN_SEGMENT_BYTES`; larger ones get segments of their own size, in steps of `STEP_BYTES`."""
OWN_SEGMENT_BYTES: Final = 10 * MIB
STEP_BYTES: Final = 2 * MIB


@dataclass(eq=False, slots=True)
class Block:
    """A piece of a segment."""

    address: int
    size: int
    pool: Pool
    is_free: bool = True
    before: Block | None = None
    after: Block | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Return what the best fit is looked for by."""
        return self.size, self.address


@dataclass(eq=False, slots=True)
class Pool:
    """Free blocks of one stream, small or large, in the order of `Block.key`."""

    is_small: bool
    keys: list[tuple[int, int]] = field(default_factory=list)
    blocks: dict[int, Block] = field(default_factory=dict)
    """By address."""

    def add(self, block: Block) -> None:
        """Offer a free block."""
        bisect.insort(self.keys, block.key)
        self.blocks[block.address] = block

    def remove(self, block: Block) -> None:
        """Take a block back, to use it or to join it with its neighbour."""
        del self.keys[bisect.bisect_left(self.keys, block.key)]
        del self.blocks[block.address]

    def best_fit(self, size: int) -> Block | None:
        """Return the smallest free block that is large enough."""
        at = bisect.bisect_left(self.keys, (size, 0))
        return self.blocks[self.keys[at][1]] if at < len(self.keys) else None

    def is_worth_splitting(self, rest: int) -> bool:
        """Tell whether a block that has so much to spare is split."""
        return rest >= ROUND_BYTES if self.is_small else rest > SMALL_BYTES


class Allocator:
    """Segments that were asked for, and the blocks in them."""

    def __init__(self) -> None:
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self._pools: dict[tuple[int, bool], Pool] = {}
        self._next_address = 0

    def take(self, size: int, stream: int = 0) -> Block:
        """Return a block of at least so many bytes, a multiple of `ROUND_BYTES`."""
        is_small = size <= SMALL_BYTES
        pool = self._pools.setdefault((stream, is_small), Pool(is_small))
        block = pool.best_fit(size)
        if block is None:
            block = self._segment(size, pool)
        else:
            pool.remove(block)
        if pool.is_worth_splitting(block.size - size):
            rest = Block(block.address + size, block.size - size, pool, before=block, after=block.after)
            if block.after is not None:
                block.after.before = rest
            block.after, block.size = rest, size
            pool.add(rest)
        block.is_free = False
        self.allocated_bytes += block.size
        return block

    def give_back(self, block: Block) -> None:
        """Free a block, and join it with free neighbours."""
        self.allocated_bytes -= block.size
        block.is_free = True
        before, after = block.before, block.after
        if before is not None and before.is_free:
            block.pool.remove(before)
            block.address, block.size, block.before = before.address, before.size + block.size, before.before
            if block.before is not None:
                block.before.after = block
        if after is not None and after.is_free:
            block.pool.remove(after)
            block.size, block.after = block.size + after.size, after.after
            if block.after is not None:
                block.after.before = block
        block.pool.add(block)

    def empty(self) -> None:
        """Give back the segments that nothing is in, as `torch.cuda.empty_cache` does."""
        for pool in self._pools.values():
            for block in list(pool.blocks.values()):
                if block.before is None and block.after is None:
                    pool.remove(block)
                    self.reserved_bytes -= block.size

    def _segment(self, size: int, pool: Pool) -> Block:
        if pool.is_small:
            length = SMALL_SEGMENT_BYTES
        elif size < OWN_SEGMENT_BYTES:
            length = LARGE_SEGMENT_BYTES
        else:
            length = -(-size // STEP_BYTES) * STEP_BYTES
        self.reserved_bytes += length
        block = Block(self._next_address, length, pool)
        self._next_address += length
        return block


@dataclass(frozen=True)
class Replayed:
    """The largest values, as torch's statistics have them."""

    allocated_bytes: int
    """Of blocks, which may be a little larger than what was asked for."""
    reserved_bytes: int


def replay(log: Log, empty_at: int) -> Replayed:
    """Replay a log, and look from the event with the number `empty_at` on; the cache is emptied before it."""
    allocator, sizes, held = Allocator(), Counter[int](), dict[int, Block]()
    most = 0
    for at, (serial, change) in enumerate(log.events):
        if at == empty_at:
            allocator.empty()  # from here on nothing is given back: the last value is the largest
            most = 0
        sizes[serial] += change
        # A storage that grows gets its new room before it gives the old one back.
        old = held.pop(serial, None)
        if sizes[serial]:
            held[serial] = allocator.take(sizes[serial], log.streams.get(serial, 0))
        most = max(most, allocator.allocated_bytes)
        if old is not None:
            allocator.give_back(old)
    return Replayed(most, allocator.reserved_bytes)
