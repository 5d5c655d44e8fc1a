"""Built models: the right sizes without weights, reload, and answers that do not depend on padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from egobench.data.egoworld.generate import Recipe, generate
from egobench.errors import InvalidInput
from egobench.models import MODELS
from egobench.models.answer import generate_answers
from egobench.models.internvl import EGOTINY, LoadedModel, build
from egobench.models.pixels import from_uint8
from egobench.models.prompt import encode_all
from egobench.spec.dims import NAMED

CPU = torch.device("cpu")
PUBLISHED = {"internvl3-1b": 938_193_024, "internvl3-2b": 2_088_957_440, "internvl3-8b": 7_944_373_760,
             "internvl3-14b": 15_117_256_704, "internvl3-38b": 38_388_164_992}  # fmt: skip
"""Computed in /work/shared/anchors/model_dims.csv and equal to the published totals to three digits."""


def make(spec: dict[str, Any], attention: str = "sdpa", device: torch.device = CPU, seed: int = 0) -> LoadedModel:
    return build(spec, attention=attention, dtype=torch.float32, device=device, seed=seed)


@pytest.fixture(scope="module")
def egotiny() -> LoadedModel:
    torch.set_num_threads(1)
    return make({"name": "egotiny"})


def test_every_name_has_a_builder_and_dims() -> None:
    assert set(MODELS) == set(NAMED)


@pytest.mark.parametrize(("name", "number"), sorted(PUBLISHED.items()))
def test_sizes_of_internvl3(name: str, number: int) -> None:
    loaded = make({"name": name, "weights": "random"}, device=torch.device("meta"))
    assert abs(loaded.num_parameters / number - 1) < 0.001
    assert (loaded.image_px, loaded.patch_px, loaded.num_image_tokens) == (448, 14, 256)


def test_egotiny_is_small_and_aligned(egotiny: LoadedModel) -> None:
    assert 1_000_000 <= egotiny.num_parameters <= 1_400_000
    assert sum(path.stat().st_size for path in EGOTINY.iterdir()) <= 6_000_000
    linears = [m for m in egotiny.model.modules() if isinstance(m, torch.nn.Linear)]
    assert linears and all(m.in_features % 128 == 0 and m.out_features % 64 == 0 for m in linears)


def test_random_weights_follow_the_seed() -> None:
    spec = {"name": "egotiny", "weights": "random"}
    one, same, other = make(spec), make(spec), make(spec, seed=1)
    # Repeats of a trial draw other weights of the same model: else each would make the others look stale.
    assert one.digest == same.digest == other.digest
    assert torch.equal(one.model.lm_head.weight, same.model.lm_head.weight)
    assert not torch.equal(one.model.lm_head.weight, other.model.lm_head.weight)


def test_save_and_reload_gives_the_same_logits(egotiny: LoadedModel, tmp_path: Path) -> None:
    egotiny.model.save_pretrained(tmp_path)
    egotiny.tokenizer.save_pretrained(tmp_path)
    again = make({"path": str(tmp_path), "name": None})
    data = generate(Recipe("home", "validation", 4, 0, 64))
    item = encode_all(data.samples, egotiny.tokenizer, 16, 256).encoded[0]
    inputs = {"input_ids": torch.tensor([item.input_ids]), "pixel_values": from_uint8(data.images[:1])}
    with torch.no_grad():
        assert torch.equal(egotiny.model(**inputs).logits, again.model(**inputs).logits)
    assert again.num_image_tokens == 16 and again.end_token_id == egotiny.end_token_id


def test_eager_and_sdpa_agree(egotiny: LoadedModel) -> None:
    eager = make({"name": "egotiny"}, attention="eager")
    data = generate(Recipe("home", "validation", 4, 0, 64))
    item = encode_all(data.samples, egotiny.tokenizer, 16, 256).encoded[0]
    inputs = {"input_ids": torch.tensor([item.input_ids]), "pixel_values": from_uint8(data.images[:1])}
    with torch.no_grad():
        assert torch.allclose(egotiny.model(**inputs).logits, eager.model(**inputs).logits, atol=1e-3)


def test_left_padding_does_not_change_answers(egotiny: LoadedModel) -> None:
    data = generate(Recipe("home", "validation", 12, 0, 64))
    images = data.images[[sample.meta["image_index"] for sample in data.samples]]
    encoded = encode_all(data.samples, egotiny.tokenizer, 16, 256).encoded
    together = generate_answers(egotiny, encoded, images, batch_size=12)
    alone = generate_answers(egotiny, encoded, images, batch_size=1)
    assert len({len(item.prompt_ids) for item in encoded}) > 1
    assert together == alone


def test_egotiny_sees(egotiny: LoadedModel) -> None:
    data = generate(Recipe("home", "validation", 64, 1, 64))
    images = data.images[[sample.meta["image_index"] for sample in data.samples]]
    encoded = encode_all(data.samples, egotiny.tokenizer, 16, 256).encoded
    scores = []
    for pictures in (images, np.full_like(images, 128)):
        answers = generate_answers(egotiny, encoded, pictures)
        scores.append(np.mean([a == s.answers[0] for a, s in zip(answers, data.samples, strict=True)]))
    assert scores[0] >= 0.78 and scores[1] <= 0.35


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"name": "gpt"}, "unknown model"),
        ({"name": "internvl3-8b"}, "weights: random"),
        ({"path": "/nowhere"}, "config.json"),
    ],
)
def test_mistakes_are_named(spec: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        make(spec)
