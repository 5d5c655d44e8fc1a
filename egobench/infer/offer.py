"""`python -m egobench.infer.offer FOLDER`: which runtimes run here, and example pictures drawn into the folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import torch
from PIL import Image

from egobench.data.egoworld.generate import Recipe, scenes
from egobench.infer.runtimes import RUNTIMES, missing
from egobench.records.answering import Example, Offer

_DOMAINS: Final = ("home", "workshop")
_PER_DOMAIN: Final = 4
_SEED: Final = 11
_PX: Final = 256


def offer(folder: Path) -> Offer:
    """Look at the machine, and draw the examples."""
    return Offer(
        device="cuda" if torch.cuda.is_available() else "cpu",
        missing={name: missing(name) for name in RUNTIMES},
        examples=tuple(example for domain in _DOMAINS for example in examples(domain, folder)),
    )


def examples(domain: str, folder: Path) -> list[Example]:
    """Draw scenes that no model of ours was trained on, and choose questions of different categories."""
    recipe = Recipe(domain, "validation", _PER_DOMAIN * 4, _SEED, _PX)
    made: list[Example] = []
    seen: set[str] = set()
    for number, (_, picture, samples) in enumerate(scenes(recipe)):
        chosen = next((one for one in samples if one.category not in seen), samples[0])
        seen.add(chosen.category)
        path = folder / f"{domain}-{number}.png"
        Image.fromarray(picture).save(path)
        made.append(Example(picture=str(path), question=chosen.question, answer=chosen.answers[0]))
    return made[:_PER_DOMAIN]


def main() -> None:
    """Print the offer as one JSON document."""
    parser = argparse.ArgumentParser(prog="python -m egobench.infer.offer", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="gets the pictures")
    print(offer(parser.parse_args().folder).model_dump_json())


if __name__ == "__main__":
    main()
