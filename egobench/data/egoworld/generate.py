"""Make an egoworld set: scenes, pictures and questions from a seed, kept in a cache folder.

The cache holds one memory-mapped array of pictures and one JSONL of records. Both are written under a
temporary name and renamed, so any number of ranks may race to make the same set.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from egobench.data.egoworld.questions import ask
from egobench.data.egoworld.render import render
from egobench.data.egoworld.scene import DOMAINS, Scene, Split, scene_of_split
from egobench.data.sample import Media, Sample, Task, from_record, to_record

VERSION = 2
"""Raised whenever drawing or asking changes, so that an old cache is never read as a new set."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Recipe:
    """Everything a generated set depends on."""

    domain: str
    split: Split
    num_samples: int
    seed: int
    image_px: int
    questions_per_scene: int = 4

    @property
    def digest(self) -> str:
        text = json.dumps({"version": VERSION} | asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Generated:
    """A set in memory; a sample's picture is row `meta["image_index"]` of `images`."""

    samples: tuple[Sample, ...]
    images: Pixels
    digest: str


def scenes(recipe: Recipe) -> Iterator[tuple[Scene, Pixels, list[Sample]]]:
    """Draw the scenes of a recipe one after another, each with its picture and samples."""
    domain, made, index = DOMAINS[recipe.domain], 0, 0
    while made < recipe.num_samples:
        name = f"{recipe.domain}/{recipe.split}/{recipe.seed}/{index}"
        rng = random.Random(f"egoworld/1/{name}")
        scene = scene_of_split(domain, recipe.split, rng)
        asked = ask(scene, recipe.questions_per_scene, rng)[: recipe.num_samples - made]
        picture = render(scene, recipe.image_px, rng)
        samples = []
        for turn, item in enumerate(asked):
            task: Task = "binary" if item.answer in ("yes", "no") else "open"
            samples.append(
                Sample(
                    id=f"{name}/{turn}", source=f"egoworld-{recipe.domain}", task=task,
                    media=Media("image", (f"{index:06d}.png",)), question=item.question,
                    answers=(item.answer,), category=item.kind, scene=scene.key, meta={"image_index": index},
                )
            )  # fmt: skip
        yield scene, picture, samples
        made, index = made + len(samples), index + 1


def generate(recipe: Recipe, cache_dir: Path | None = None) -> Generated:
    """Make the set, or read it from `cache_dir` where it was made before."""
    if cache_dir is None:
        return _make(recipe)
    stem = cache_dir / f"egoworld-{recipe.domain}-{recipe.split}-{recipe.digest[:16]}"
    images_path, records_path = stem.with_suffix(".npy"), stem.with_suffix(".jsonl")
    if not (records_path.exists() and images_path.exists()):  # the records are written last
        made = _make(recipe)
        cache_dir.mkdir(parents=True, exist_ok=True)
        _write_images(images_path, made.images)
        _write_records(records_path, made)
    return _read(recipe, images_path, records_path)


def _make(recipe: Recipe) -> Generated:
    drawn = list(scenes(recipe))
    samples = tuple(sample for _, _, group in drawn for sample in group)
    return _with_digest(samples, np.stack([picture for _, picture, _ in drawn]))


def _with_digest(samples: tuple[Sample, ...], images: Pixels) -> Generated:
    digest = hashlib.sha256(np.ascontiguousarray(images).tobytes())
    for sample in samples:
        digest.update(json.dumps(to_record(sample), sort_keys=True).encode())
    return Generated(samples, images, digest.hexdigest())


def _write_images(path: Path, images: Pixels) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        np.save(file, images)
    os.replace(file.name, path)


def _write_records(path: Path, made: Generated) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(json.dumps({"digest": made.digest}) + "\n")
        file.writelines(json.dumps(to_record(sample)) + "\n" for sample in made.samples)
    os.replace(file.name, path)


def _read(recipe: Recipe, images_path: Path, records_path: Path) -> Generated:
    header, *lines = records_path.read_text().splitlines()
    samples = tuple(from_record(json.loads(line)) for line in lines)
    images: Pixels = np.load(images_path, mmap_mode="r")
    return Generated(samples, images, json.loads(header)["digest"])
