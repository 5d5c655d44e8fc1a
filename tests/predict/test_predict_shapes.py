from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from egobench.models.internvl import EGOTINY, config_of
from egobench.predict.numbers import counts
from egobench.predict.shapes import LlmShape, TowerShape, shape_of
from egobench.spec.dims import NAMED


def config(**changes: Any) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((EGOTINY / "config.json").read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        part = read
        for parent in parents:
            part = part[parent]
        part[last] = value
    return read


def test_a_checkpoints_file_and_its_config_say_the_same() -> None:
    shape = shape_of(config())
    assert shape is not None
    assert shape == shape_of(config_of(NAMED["egotiny"]).to_dict())
    assert shape.tower == TowerShape(
        hidden=128, layers=3, heads=4, ffn=256, image_px=64, patch_px=8, channels=3
    )  # fmt: skip
    assert shape.llm == LlmShape(
        hidden=128, layers=3, heads=4, kv_heads=2, head_dim=32, ffn=384, vocab=768, is_tied=False,
        has_attention_bias=True,
    )  # fmt: skip
    assert shape.num_image_tokens == 16


@pytest.mark.parametrize("name", sorted(NAMED))
def test_matrices_are_the_models(name: str) -> None:
    """Every linear layer and the convolution, by the names and with the sizes that transformers gives them."""
    import torch
    from torch import nn

    from egobench.models.internvl import FAMILY

    made = config_of(NAMED[name])
    with torch.device("meta"):
        model = FAMILY._from_config(made, attn_implementation="eager", dtype=torch.bfloat16)
    found = {
        name: (module.weight[0].numel(), module.weight.shape[0])
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    shape = shape_of(made.to_dict())
    assert shape is not None
    assert {name: (matrix.inputs, matrix.outputs) for name, matrix in shape.matrices().items()} == found
    assert counts(shape, "full", "trained", 0, "").trained == sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize("is_tied", [False, True])
def test_every_number_of_a_model_with_norms_of_queries_is_counted(is_tied: bool) -> None:
    import torch
    from transformers import InternVLConfig

    from egobench.models.internvl import FAMILY

    text = {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 768}
    vision = {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False}
    read = config()
    made = InternVLConfig(
        vision_config=read["vision_config"] | vision,
        text_config={**read["text_config"], **text},
        tie_word_embeddings=is_tied,
    )
    with torch.device("meta"):
        model = FAMILY._from_config(made, attn_implementation="eager", dtype=torch.bfloat16)
    shape = shape_of(made.to_dict())
    assert shape is not None and shape.llm.has_qk_norm and shape.tower.has_qk_norm
    assert counts(shape, "full", "trained", 0, "").trained == sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "llava"},
        {"text_config__model_type": "qwen3_moe"},
        {"vision_config__model_type": "clip_vision_model"},
        {"vision_feature_layer": -2},
        {"text_config__use_sliding_window": True},
        {"text_config__num_experts": 8},
        {"vision_config__image_size": [64, 128]},
        {"text_config__num_key_value_heads": None},
        {"downsample_ratio": None},
        {"vision_config": None},
    ],
    ids=str,
)
def test_what_is_not_known_is_not_guessed(changes: dict[str, Any]) -> None:
    assert shape_of(config(**changes)) is None


def test_the_size_of_a_head_and_of_a_square() -> None:
    shape = shape_of(config(text_config__head_dim=64, vision_config__image_size=96))
    assert shape is not None
    assert (shape.llm.attention_width, shape.tower.image_px, shape.num_image_tokens) == (256, 96, 36)


def test_no_torch_is_needed() -> None:
    code = (
        "import json, sys\nfrom egobench.predict import flops, shapes, trained\n"
        f"shape = shapes.shape_of(json.load(open({str(EGOTINY / 'config.json')!r})))\n"
        "axes = {'method': 'full', 'projector': 'trained', 'checkpointing': 'full', 'vision_checkpointing': 'same'}\n"
        "how = flops.Execution(trained.recomputed_by(shape, axes))\n"
        "print(flops.flops(shape, trained.trained_by(shape, axes), how).forward.logit, 'torch' in sys.modules)"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == [str(2 * 128 * (768 + 3 * 384)), "False"]
