"""Load the `data:` mapping of a workload: read or generate, split, and hand out pictures."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from egobench.data.egoworld.generate import Recipe, generate
from egobench.data.egoworld.scene import DOMAINS, Split
from egobench.data.formats import READERS, root_of
from egobench.data.sample import Sample, Skipped, to_record
from egobench.errors import InvalidInput, Mistake

Pixels = npt.NDArray[np.uint8]
NUM_EXAMPLES = 3
"""Skipped records kept per reason, to show what went wrong."""


@dataclass(frozen=True)
class DataSet:
    """One split of a data set: samples, their pictures, and what was left out and why."""

    samples: tuple[Sample, ...]
    root: Path
    skipped: dict[str, int]
    """Reason -> records of the whole set, both splits; `unknown_key` counts notes, not lost records."""
    examples: tuple[Skipped, ...] = ()
    stored: Pixels | None = None
    """Generated pictures, row `meta["image_index"]`; None where pictures are files."""
    known_digest: str = ""

    @cached_property
    def digest(self) -> str:
        """Hash records and picture bytes; reads every picture file once."""
        if self.known_digest:
            return self.known_digest
        total, seen = hashlib.sha256(), set[str]()
        for sample in self.samples:
            total.update(json.dumps(to_record(sample), sort_keys=True).encode())
            for path in sample.media.paths:
                if path not in seen:
                    seen.add(path)
                    total.update(hashlib.sha256((self.root / path).read_bytes()).digest())
        return total.hexdigest()

    def images(self, sample: Sample) -> list[Image.Image]:
        """Return every picture of a sample as RGB."""
        if self.stored is not None:
            return [Image.fromarray(self.stored[sample.meta["image_index"]])]
        return [Image.open(self.root / path).convert("RGB") for path in sample.media.paths]

    def image(self, sample: Sample) -> Image.Image:
        """Return the first picture of a sample as RGB."""
        return self.images(sample)[0]

    def pixels(self, samples: Sequence[Sample], image_px: int) -> Pixels:
        """Return uint8 [pictures, image_px, image_px, 3], pictures of one sample in a row, resized bicubic."""
        if self.stored is not None and self.stored.shape[1] == image_px:
            rows: Pixels = self.stored[[sample.meta["image_index"] for sample in samples]]
            return rows
        side = (image_px, image_px)
        images = [image for sample in samples for image in self.images(sample)]
        return np.stack([np.asarray(image.resize(side, Image.Resampling.BICUBIC)) for image in images])


def load(
    spec: Mapping[str, Any], split: Split, seed: int = 0, *, cache_dir: Path | None = None, image_px: int = 64
) -> DataSet:
    """Load one split of what a workload's `data:` asks for.

    `split_seed` (or `seed`) in the mapping goes before the argument. `cache_dir` and `image_px` matter for
    generated sets only; an `image_px` in the mapping goes before the argument.
    """
    given = {key: value for key, value in spec.items() if value is not None}
    used_seed = int(given.get("split_seed", given.get("seed", seed)))
    if given.get("format") == "egoworld":
        return _egoworld(given, split, used_seed, cache_dir, image_px)
    reader, path = _reader(given)
    samples, skipped, examples = collect(reader(path))
    chosen = _cap(_split(samples, split, given.get("validation_fraction", 0.2), used_seed), given, split, used_seed)
    if not chosen:
        reasons = ", ".join(f"{reason} {count}" for reason, count in skipped.items()) or "the file is empty"
        raise InvalidInput([Mistake(str(path), f"no usable sample for {split} ({reasons})", "at least one", "")])
    return DataSet(chosen, root_of(path), skipped, examples)


def collect(items: Iterator[Sample | Skipped]) -> tuple[list[Sample], dict[str, int], tuple[Skipped, ...]]:
    """Part samples from skipped records; count those by reason and keep a few."""
    samples: list[Sample] = []
    counts: Counter[str] = Counter()
    examples: list[Skipped] = []
    for item in items:
        if isinstance(item, Sample):
            samples.append(item)
            continue
        counts[item.reason] += 1
        if counts[item.reason] <= NUM_EXAMPLES:
            examples.append(item)
    return samples, dict(sorted(counts.items())), tuple(examples)


def reader_of(name: str) -> Callable[[Path], Iterator[Sample | Skipped]]:
    """Import the reader of a format."""
    module, _, function = READERS[name].partition(":")
    reader: Callable[[Path], Iterator[Sample | Skipped]] = getattr(importlib.import_module(module), function)
    return reader


def _reader(given: Mapping[str, Any]) -> tuple[Callable[[Path], Iterator[Sample | Skipped]], Path]:
    name, path = given.get("format"), Path(str(given.get("path", ""))).expanduser()
    mistakes = []
    if name not in READERS:
        allowed = ", ".join(["egoworld", *READERS])
        mistakes.append(Mistake("data.format", f"unknown format {name!r}", f"allowed: {allowed}", ""))
    if "path" not in given or not path.exists():
        todo = "give the path of the data set's file or folder"
        mistakes.append(Mistake("data.path", f"no such file or folder: {given.get('path')!r}", "", todo))
    if mistakes:
        raise InvalidInput(mistakes)
    return reader_of(str(name)), path


def _egoworld(given: Mapping[str, Any], split: Split, seed: int, cache_dir: Path | None, image_px: int) -> DataSet:
    domain = given.get("domain", "workshop")
    if domain not in DOMAINS:
        raise InvalidInput([Mistake("data.domain", f"unknown domain {domain!r}", f"allowed: {', '.join(DOMAINS)}", "")])
    number = int(given.get(f"num_{split}", 2048 if split == "train" else 256))
    recipe = Recipe(
        domain, split, number, seed, int(given.get("image_px", image_px)), int(given.get("questions_per_scene", 4))
    )
    made = generate(recipe, cache_dir)
    return DataSet(made.samples, Path(), {}, (), made.images, made.digest)


def _split(samples: Sequence[Sample], split: Split, fraction: float, seed: int) -> list[Sample]:
    """Take the share of pictures, never of questions, that belongs to the split."""
    groups = _linked(samples)
    names = sorted(set(groups), key=lambda name: _draw(seed, name))
    held_out = set(names[: round(len(names) * fraction)])
    is_validation = split == "validation"
    return [sample for sample, name in zip(samples, groups, strict=True) if (name in held_out) == is_validation]


def _linked(samples: Sequence[Sample]) -> list[str]:
    """Name the group of each sample; samples that share a scene or any picture share a group."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for sample in samples:
        first, *others = (sample.scene, *sample.media.paths)
        for other in others:
            low, high = sorted((find(first), find(other)))
            parent[high] = low
    return [find(sample.scene) for sample in samples]


def _cap(samples: list[Sample], given: Mapping[str, Any], split: Split, seed: int) -> tuple[Sample, ...]:
    """Keep at most `num_train` or `num_validation` samples, drawn evenly, in file order."""
    most = int(given.get(f"num_{split}", len(samples)))
    if most >= len(samples):
        return tuple(samples)
    kept = {sample.id for sample in sorted(samples, key=lambda sample: _draw(seed, sample.id))[:most]}
    return tuple(sample for sample in samples if sample.id in kept)


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
