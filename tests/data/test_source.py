"""Loading a workload's data: splits that do not leak, digests that notice, errors that help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from egobench.data.inspect import describe
from egobench.data.source import load
from egobench.errors import InvalidInput

EGOWORLD = {
    "format": "egoworld",
    "domain": "workshop",
    "num_train": 40,
    "num_validation": 12,
    "seed": 0,
    "image_px": 32,
}


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    """20 pictures, 3 questions each; some records show two pictures and so link them."""
    records = []
    for index in range(20):
        Image.fromarray(np.full((24, 32, 3), index * 10, np.uint8)).save(tmp_path / f"{index}.png")
        for turn in range(3):
            paths = [f"{index}.png", f"{index - 1}.png"] if turn == 2 and index % 4 == 1 else [f"{index}.png"]
            media = {"type": "frames" if len(paths) > 1 else "image", "paths": paths}
            records.append({"id": f"{index}/{turn}", "media": media, "question": f"q{turn}?", "answers": ["a b"]})
    file = tmp_path / "set.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return {"format": "egobench", "path": str(file), "validation_fraction": 0.25, "split_seed": 0}


def test_split_is_by_picture_and_complete(spec: dict[str, Any]) -> None:
    train, held_out = load(spec, "train"), load(spec, "validation")
    assert len(train.samples) + len(held_out.samples) == 60
    seen = {path for sample in train.samples for path in sample.media.paths}
    asked = {path for sample in held_out.samples for path in sample.media.paths}
    assert asked and not seen & asked
    assert 8 <= len(held_out.samples) <= 24


def test_split_depends_on_the_seed_only(spec: dict[str, Any]) -> None:
    assert load(spec, "validation").digest == load(spec, "validation", seed=9).digest
    assert load(spec, "validation").samples != load(spec | {"split_seed": 1}, "validation").samples


def test_number_of_samples_is_capped(spec: dict[str, Any]) -> None:
    capped = load(spec | {"num_train": 7, "domain": None}, "train")
    assert len(capped.samples) == 7
    assert {s.id for s in capped.samples} <= {s.id for s in load(spec, "train").samples}


def test_digest_sees_picture_bytes_and_records(spec: dict[str, Any]) -> None:
    before, root = load(spec, "train"), Path(spec["path"]).parent
    first = before.digest
    name = before.samples[0].media.paths[0]
    Image.new("RGB", (32, 24), (1, 2, 3)).save(root / name)
    assert load(spec, "train").digest != first


def test_egoworld_pixels_match_images(tmp_path: Path) -> None:
    data = load(EGOWORLD, "train", cache_dir=tmp_path)
    rows = data.pixels(data.samples[:3], 32)
    assert rows.shape == (3, 32, 32, 3) and rows.dtype == np.uint8
    assert np.array_equal(rows[1], np.asarray(data.image(data.samples[1])))
    assert data.pixels(data.samples[:2], 48).shape == (2, 48, 48, 3)


def test_racing_processes_make_one_good_cache(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from egobench.data.source import load;"
        f"print(load({EGOWORLD!r}, 'train', cache_dir=Path(sys.argv[1])).digest)"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    digests = {racer.communicate(timeout=60)[0].strip() for racer in racers}
    assert digests == {load(EGOWORLD, "train").digest}


@pytest.mark.parametrize(
    ("change", "word"),
    [({"format": "cassette"}, "cassette"), ({"path": "nowhere.jsonl"}, "nowhere"), ({"path": None}, "data.path")],
)
def test_mistakes_are_named(spec: dict[str, Any], change: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        load(spec | change, "train")


def test_unknown_domain_is_named() -> None:
    with pytest.raises(InvalidInput, match="home, workshop"):
        load(EGOWORLD | {"domain": "moon"}, "train")


def test_describe_counts(spec: dict[str, Any]) -> None:
    facts = describe(load(spec, "train"))
    assert facts["answer_words"] == {"median": 2.0, "p95": 2.0, "max": 2.0}
    assert facts["one_word_share"] == 0 and set(facts["image_sizes"]) == {"32x24"}
    assert json.dumps(facts)


def test_login_side_does_not_import_torch() -> None:
    code = (
        "import sys, egobench.data.source, egobench.data.inspect, egobench.models, egobench.models.prompt,"
        "egobench.data.formats.sharegpt; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
