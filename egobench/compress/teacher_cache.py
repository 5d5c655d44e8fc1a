"""A teacher's likeliest tokens at every supervised position of a training set, written once and read by later trials.

    <cache>/teacher/<digest>/manifest.json, block-00000.safetensors, ...

A block holds the positions of some samples in a row. The folder is named by all that its numbers depend on, and says
it again in its manifest and in every block, so that a file which came there otherwise is refused. Ranks share the work;
the folder appears when all of it is written, and where two trials write the same one, the first to finish is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from egobench.errors import InvalidInput, Mistake
from egobench.records.store import disk_errors, read_document, write_document
from egobench.spec.strict import Record
from egobench.train.rank import Rank
from egobench.train.strategies.native import gather_things

BLOCK_BYTES: Final = 256 * 2**20
"""Of one file, about."""
MANIFEST: Final = "manifest.json"
_KEY: Final = "egobench"

Tops = tuple[torch.Tensor, torch.Tensor]
"""Tokens int [positions, k], and their log-probabilities with that of all others fp32 [positions, k + 1]."""


class About(Record):
    """What the numbers of a cache depend on."""

    teacher: str
    """Digest of its folder."""
    data: str
    """Digest of the pictures, and of the tokens in their order."""
    top_k: int
    temperature: float
    precision: str
    """The axis: which format the teacher multiplied in."""

    @property
    def digest(self) -> str:
        """Return what names the folder."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:24]


class Manifest(Record):
    """`manifest.json`, written last."""

    schema_version: Literal[1] = 1
    about: About
    firsts: list[int]
    """The first sample of every block."""
    num_samples: int
    num_positions: int


class TeacherCache:
    """Reads the cache of a training set whose samples have `counts` supervised tokens each.

    Raises:
        InvalidInput: it is of another teacher or of other data, or a file of it is missing or damaged.
    """

    def __init__(self, folder: Path, about: About, counts: Sequence[int]) -> None:
        self.folder = folder
        manifest = read_document(folder / MANIFEST, Manifest)
        if manifest is None:
            raise self._refusal("has no manifest")
        said, needed = manifest.about.model_dump(), about.model_dump()
        stale = [f"{name} {said[name]!r} instead of {needed[name]!r}" for name in needed if said[name] != needed[name]]
        if (manifest.num_samples, manifest.num_positions) != (len(counts), sum(counts)):
            stale.append(f"{manifest.num_positions} positions instead of {sum(counts)}")
        if stale:
            raise self._refusal(f"is stale: {', '.join(stale)}")
        self._firsts = manifest.firsts
        self._starts = [0, *accumulate(counts)]
        self._blocks = [self._open(number, about) for number in range(len(self._firsts))]

    def tops(self, samples: Sequence[int]) -> Tops:
        """Return the positions of these samples, one sample after the other."""
        found = [self._of(sample) for sample in samples]
        return torch.cat([ids for ids, _ in found]).long(), torch.cat([log_probs for _, log_probs in found])

    def _of(self, sample: int) -> Tops:
        number = bisect_right(self._firsts, sample) - 1
        before = self._starts[self._firsts[number]]
        here = slice(self._starts[sample] - before, self._starts[sample + 1] - before)
        block = self._blocks[number]
        return block.get_slice("ids")[here], block.get_slice("log_probs")[here]

    def _open(self, number: int, about: About) -> Any:
        path = self.folder / block_name(number)
        ends = [*self._firsts[1:], len(self._starts) - 1]
        rows = self._starts[ends[number]] - self._starts[self._firsts[number]]
        try:
            block: Any = safe_open(path, "pt")
            found, shape = (block.metadata() or {}).get(_KEY), block.get_slice("log_probs").get_shape()
        except (SafetensorError, OSError) as error:
            raise self._refusal(f"has a damaged {path.name}: {error}") from error
        if found != about.model_dump_json() or shape != [rows, about.top_k + 1]:
            raise self._refusal(f"has a stale {path.name}: it is of {found}, {shape}")
        return block

    def _refusal(self, what: str) -> InvalidInput:
        where, todo = "distillation.teacher_logits", f"remove {self.folder}, and it is written anew"
        return InvalidInput([Mistake(where, f"the cache {self.folder} {what}", todo=todo)])


def block_name(number: int) -> str:
    """Return the name of a block's file."""
    return f"block-{number:05d}.safetensors"


def cached(
    base: Path, about: About, counts: Sequence[int], rank: Rank, produce: Callable[[], Callable[[range], Tops]]
) -> TeacherCache:
    """Open the cache of a teacher and a training set, after writing it where it does not exist yet; a collective.

    Args:
        base: Folder of all caches, the same for every rank.
        about: What the numbers depend on.
        counts: Supervised tokens of every sample.
        rank: Whose turn it is, block by block.
        produce: Called where there is something to write; returns what makes the numbers of some samples in a row.
    """
    folder = base / about.digest
    is_there = gather_things(rank, folder.exists())[0]
    if not is_there:
        scratch = base / f".{about.digest}.{gather_things(rank, uuid.uuid4().hex)[0]}"
        _write(scratch, about, counts, rank, produce())
        gather_things(rank, None)  # every block is there
        if rank.is_first:
            _publish(scratch, folder)
        gather_things(rank, None)
    return TeacherCache(folder, about, counts)


def _write(folder: Path, about: About, counts: Sequence[int], rank: Rank, make: Callable[[range], Tops]) -> None:
    firsts = blocks_of(counts, 4 * (2 * about.top_k + 1), rank.num_ranks)
    ends = [*firsts[1:], len(counts)]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(rank.rank, len(firsts), rank.num_ranks):
            ids, log_probs = make(range(firsts[number], ends[number]))
            tensors = {"ids": ids.to("cpu", torch.int32), "log_probs": log_probs.cpu()}
            save_file(tensors, folder / block_name(number), metadata={_KEY: about.model_dump_json()})
        if rank.is_first:
            num_positions = sum(counts)
            manifest = Manifest(about=about, firsts=firsts, num_samples=len(counts), num_positions=num_positions)
            write_document(folder / MANIFEST, manifest)


def _publish(scratch: Path, folder: Path) -> None:
    try:
        os.rename(scratch, folder)
    except OSError:
        if not (folder / MANIFEST).exists():  # else another trial was quicker
            raise
        shutil.rmtree(scratch)


def blocks_of(counts: Sequence[int], position_bytes: int, num_ranks: int) -> list[int]:
    """Return the first sample of every block: none much larger than a file should be, and some for every rank."""
    room = max(1, min(BLOCK_BYTES // position_bytes, -(-sum(counts) // num_ranks)))
    firsts, held = [0], 0
    for sample, count in enumerate(counts):
        if held >= room:
            firsts.append(sample)
            held = 0
        held += count
    return firsts


def data_digest(pictures: str, encoded: Sequence[Sequence[int]]) -> str:
    """Name a training set by its pictures and records, and by the tokens that it has become."""
    total = hashlib.sha256(pictures.encode())
    for ids in encoded:
        total.update(json.dumps(list(ids)).encode())
    return total.hexdigest()
