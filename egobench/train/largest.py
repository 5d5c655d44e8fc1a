"""`micro_batch_size: max`: the largest micro-batch that fits, found by the ranks of a trial before they train.

Micro-batches of the longest samples go forward and backward, with room held for the optimizer's states. From what
a size takes, and how that grew since the size before, follows the one that would just fit. It is tried next, and so the
search nears the limit from below. A size that does not fit is a bound from above.

- GPU: the peak of the allocator counts, against what the device has left. An out-of-memory error is a finding where
  a rank can recover from it alone (single and ddp, which send nothing around meanwhile). Where parameters are spread
  over the ranks, one that fails leaves the others waiting in a collective: the error ends the trial, and is remembered.
- CPU: nobody raises there, a process that takes too much is killed. Sizes are tried until it is clear what a sample
  takes; the one that would just fit is then taken without being tried.

What was learned is kept in the cache folder by everything that it depends on, so that repeats of a cell train with the
same size; they only confirm it.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from egobench.probes.host_memory import available_bytes
from egobench.probes.memory import CpuMemory
from egobench.probes.provenance import packages
from egobench.records.code import code_digest
from egobench.records.store import read_document, write_document
from egobench.records.trial import Trial
from egobench.spec.strict import Record
from egobench.train import dry_run
from egobench.worker.classify import classify
from egobench.worker.say import say

if TYPE_CHECKING:
    from egobench.train.setup import Work

GPU_SHARE: Final = 0.95
"""Of what the device has left; the rest is for fragments, libraries, and what differs between steps."""
SPREAD_SHARE: Final = 0.9
"""The same where nobody recovers from an out-of-memory error."""
CPU_SHARE: Final = 0.7
"""Of what the host has left, an equal part for each rank; a mistake kills there."""
RECOVERABLE: Final = ("single", "ddp")
MOST_GROWTH: Final = 4
"""The next size is at most so many times the last one: what packed rows take may grow faster than they do."""
TELLING_BYTES: Final = 64 * 2**20
"""CPU: this much can be told from what allocator and libraries hold."""
STEADY: Final = 1.1
"""CPU: it is clear what a sample takes when two sizes in a row differ by less than this factor about what would fit."""
SLACK: Final = 1.25
"""CPU: a remembered size may be so many times what would fit now: what is free and what is measured varies a little."""
CLOSE_ENOUGH: Final = 64
"""The search ends where the next size would gain no more than one part in so many."""
PROOF: Final = 8
"""To see that nothing larger fits, a size is tried that is larger by one part in so many; then by twice that."""


@dataclass(frozen=True)
class Attempt:
    """What a size took on a rank, and what there was for it."""

    size: int
    taken_bytes: int
    room_bytes: int

    @property
    def fits(self) -> bool:
        return self.taken_bytes <= self.room_bytes

    def would_fit(self, smaller: Attempt | None = None) -> int:
        """Return the size that would just fit, if what is taken grows as it did since a smaller one.

        In proportion at least: what does not depend on the size is thus taken for a part of every sample at first.
        """
        power = 1.0
        if smaller is not None and self.size > smaller.size:
            grown = math.log(max(1, self.taken_bytes) / max(1, smaller.taken_bytes))
            power = max(1.0, grown / math.log(self.size / smaller.size))
        return int(self.size * (self.room_bytes / max(1, self.taken_bytes)) ** (1 / power) + 1e-6)


class Learned(Record):
    """`<cache>/micro_batch/<digest>.json`."""

    schema_version: Literal[1] = 1
    fits: int = 0
    """0: nothing is known to fit."""
    fails: int | None = None
    """Smallest size that is known not to fit."""
    about: dict[str, Any] = {}
    """What the digest is of, for people."""


Mode = Literal["prove", "trust", "foresee"]
"""What a search does at the end: see that a larger size does not fit; trust what sizes took so far; or not even try the
last one, once it is clear what a sample takes."""


def search(
    attempt: Callable[[int], Attempt | None], limit: int, learned: Learned, *, start: int = 1, mode: Mode = "prove"
) -> Learned:
    """Find the largest size up to `limit` that fits; `fits` of the answer is 0 where none does.

    Args:
        attempt: Tries a size; None: out of memory.
        limit: Larger ones make no sense.
        learned: What is known from before. A size that was found then is only confirmed.
        start: The first size to try.
        mode: How to end.
    """
    fits, fails = 0, learned.fails
    if mode == "foresee" and learned.fits:
        limit = min(limit, learned.fits)
    size, before, aim, proof = min(start, limit), None, 0, 1 / PROOF
    while size > fits + fits // CLOSE_ENOUGH:
        found = attempt(size)
        if found is None or not found.fits:
            fails = size
            size = (fits + size) // 2
            continue
        earlier, aim = aim, found.would_fit(before)
        fits, before = size, found
        top = limit if fails is None else min(limit, fails - 1)
        size = min(aim, top)
        is_clear = mode == "foresee" and found.taken_bytes >= TELLING_BYTES
        is_clear = is_clear and earlier / STEADY <= aim <= earlier * STEADY
        if fits == learned.fits or (is_clear and learned.fits == limit <= aim * SLACK):
            return Learned(fits=learned.fits, fails=fails)
        if is_clear:
            return Learned(fits=max(fits, size), fails=fails)
        size = min(size, MOST_GROWTH * fits)
        if mode == "prove" and fails is not None:
            size = min(top, (fits + fails) // 2)
        elif mode == "prove" and size < fits + (step := max(1, int(fits * proof))):
            size, proof = min(top, fits + step), 2 * proof
    return Learned(fits=fits, fails=fails)


def find_largest(work: Work) -> int:
    """Return the largest micro-batch that fits on every rank. All ranks call it, before any feed is used.

    Raises:
        RuntimeError: PyTorch's own out-of-memory error: not even one sample fits, or a rank could not recover.
    """
    device = work.rank.device
    first = work.rank.is_first
    # Every rank sees other room: the first one's is what the answer is kept under.
    path, about = work.strategy.gather(_remembered(work.trial, device))[0]
    learned: Learned = work.strategy.gather(read_document(path, Learned) if first else None)[0] or Learned()
    num_micro_steps = int(work.trial.cell.axes["num_accumulation_steps"])
    limit = max(1, len(work.material.train.encoded) // (work.rank.num_ranks * num_micro_steps))
    with dry_run.without_trace(work):
        held = dry_run.reserve_states(work)
        tries = _Tries(work)
        tries.settle()
        on_gpu = device.type == "cuda"
        mode: Mode = "foresee" if not on_gpu else "prove" if tries.recovers else "trust"
        # On a CPU there may be less than last time, and nobody would raise.
        is_safe = on_gpu or learned.fails is not None
        try:
            found = search(tries, limit, learned, start=(learned.fits or 1) if is_safe else 1, mode=mode)
        except RuntimeError as error:
            if classify(error, on_gpu) == "oom":  # this rank's own, and perhaps its last word
                write_document(path, Learned(fits=tries.passed, fails=tries.sizes[-1], about=about))
            raise
        tries.finish()
        del held
    if first:
        say(f"micro_batch_size: max is {found.fits}, at most {limit}; tried {', '.join(map(str, tries.sizes))}")
        if (found.fits, found.fails) != (learned.fits, learned.fails):
            write_document(path, found.model_copy(update={"about": about}))
    if not found.fits and tries.refusal is not None:
        raise torch.OutOfMemoryError(f"micro_batch_size: max: not even one sample fits: {tries.refusal}")
    return max(1, found.fits)


class _Tries:
    """Tries sizes on all ranks at once; they agree on what came of it."""

    def __init__(self, work: Work) -> None:
        self._work, self._device = work, work.rank.device
        axes = work.trial.cell.axes
        self.recovers = axes["strategy"] in RECOVERABLE
        """An out-of-memory error concerns one rank alone."""
        # DDP's gradients are views into its buckets, once they have been reduced; forgotten ones would be made anew.
        self._keeps_gradients = axes["strategy"] == "ddp" and int(axes["num_accumulation_steps"]) == 1
        self._orders = longest_first(work)
        self.sizes: list[int] = []
        self.passed = 0
        """The largest size that fitted so far."""
        self.refusal: str | None = None
        """What the allocator said last."""

    def settle(self) -> None:
        """Have one sample make everything that stays: DDP's gradients, library handles, communicators."""
        dealt = self._work.feed.gathered(self._orders[0][:1])
        try:
            dry_run.settle(self._work, dealt)
            dry_run.run_micro_steps(self._work, dealt)
        except RuntimeError as error:
            self._explain(error, 1)
            raise
        self._forget()

    def finish(self) -> None:
        """Leave no gradients."""
        if self._keeps_gradients:
            self._work.strategy.forget()

    def __call__(self, size: int) -> Attempt | None:
        self.sizes.append(size)
        found = self._on_gpu(size) if self._device.type == "cuda" else self._on_cpu(size)
        everyone = [one for one in self._work.strategy.gather(found) if one is not None]
        if len(everyone) < self._work.rank.num_ranks:
            return None
        worst = min(everyone, key=lambda one: one.room_bytes - one.taken_bytes)
        self.passed = max(self.passed, size if worst.fits else 0)
        return worst

    def _on_gpu(self, size: int) -> Attempt | None:
        share = GPU_SHARE if self.recovers else SPREAD_SHARE
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        has_room = self._passes(size)
        taken = torch.cuda.max_memory_allocated(self._device) - before
        gc.collect()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self._device)
        room = min(free + torch.cuda.memory_reserved(self._device), _allowed_bytes(self._device)) - before
        return Attempt(size, taken, int(share * room)) if has_room else None

    def _on_cpu(self, size: int) -> Attempt | None:
        gc.collect()
        self._work.strategy.gather(None)  # the others have given back what they took
        ranks_here = self._work.rank.num_ranks // self._work.trial.placement.num_nodes
        room = int(CPU_SHARE * available_bytes()) // ranks_here
        self._work.strategy.gather(None)
        CpuMemory().reset()
        memory = CpuMemory()  # what is taken is counted from here
        has_room = self._passes(size)
        return Attempt(size, memory.peak().allocated_bytes, room) if has_room else None

    def _passes(self, size: int) -> bool:
        """Run micro-batches of a size; return whether there was room for them."""
        try:
            for order in self._orders:
                dry_run.run_micro_steps(self._work, self._work.feed.gathered(order[:size]), alone=self.recovers)
                self._forget()
        except RuntimeError as error:
            if not self._is_out_of_memory(error) or not self.recovers:
                self._explain(error, size)
                raise
            self.refusal = str(error)
            traceback.clear_frames(error.__traceback__)  # they hold the activations
            self._forget()
            return False
        return True

    def _is_out_of_memory(self, error: RuntimeError) -> bool:
        return classify(error, self._device.type == "cuda") == "oom"

    def _explain(self, error: RuntimeError, size: int) -> None:
        if self._is_out_of_memory(error):
            error.args = (f"micro_batch_size: max: trying {size} samples: {error}",)

    def _forget(self) -> None:
        if not self._keeps_gradients:
            self._work.strategy.forget()


def _allowed_bytes(device: torch.device) -> int:
    """Return what the allocator lets this process have (`torch.cuda.set_per_process_memory_fraction`)."""
    total: int = torch.cuda.get_device_properties(device).total_memory
    return int(total * torch.cuda.get_per_process_memory_fraction(device))


def longest_first(work: Work) -> list[list[int]]:
    """Return all samples, those with most tokens first; and once more by pictures, where their number varies."""
    encoded = work.material.train.encoded
    by_length = sorted(range(len(encoded)), key=lambda index: -len(encoded[index].input_ids))
    if len({item.num_image_tokens for item in encoded}) == 1:
        return [by_length]
    return [by_length, sorted(by_length, key=lambda index: -encoded[index].num_image_tokens)]


def _remembered(trial: Trial, device: torch.device) -> tuple[Path, dict[str, Any]]:
    """Return where the answer for this trial is kept, and what it depends on."""
    without = ("micro_batch_size", "learning_rate", "num_steps")
    workload = trial.cell.workload
    room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    about: dict[str, Any] = {
        "axes": {name: value for name, value in trial.cell.axes.items() if name not in without},
        "model": workload.model.model_dump(mode="json"),
        "data": workload.data.model_dump(mode="json"),
        "num_nodes": trial.placement.num_nodes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        "packages": packages(),
        "code": code_digest(),
        # Beside others there is less. Rounded down to a power of two: what is free is never the same twice.
        "room_bytes": 1 << (max(1, room).bit_length() - 1),
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    return Path(trial.placement.cache_folder) / "micro_batch" / f"{digest}.json", about
