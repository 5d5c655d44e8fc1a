"""Build InternVL models with transformers' own classes: from a folder, by name with random weights, or egotiny."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    Qwen2Config,
)
from transformers.utils.logging import disable_progress_bar

from egobench.errors import InvalidInput, Mistake
from egobench.models.prompt import END, IMAGE_TOKEN, PAD
from egobench.spec.dims import NAMED, ModelDims

EGOTINY = Path(__file__).parent / "egotiny"
FAMILY: Any = InternVLForConditionalGeneration  # its methods are untyped


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to train or to answer, and what batches need to know about it."""

    model: Any
    tokenizer: Any
    name: str
    image_px: int
    patch_px: int
    num_image_tokens: int
    """Language-model tokens that one image becomes."""
    image_token_id: int
    pad_token_id: int
    end_token_id: int
    digest: str
    """Names what the weights come from: checkpoint files, or the shapes of random ones (the trial has the seed)."""

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def build(
    model: Mapping[str, Any], *, attention: str | dict[str, str], dtype: torch.dtype, device: torch.device, seed: int
) -> LoadedModel:
    """Build what the `model:` mapping of a workload asks for, in evaluation mode, on `device`.

    `{"path": FOLDER}` reads a checkpoint; `{"name": NAME, "weights": "random"}` draws weights from `seed`
    directly on `device` in `dtype`, for pictures of another size if `image_px` says so; `{"name": "egotiny"}` reads the
    shipped weights.
    """
    folder = _folder(model)
    if folder is not None:
        return _from_folder(folder, str(model.get("name") or folder.name), attention, dtype, device)
    name = str(model["name"])
    dims = NAMED[name]
    if image_px := model.get("image_px"):
        dims = replace(dims, vision=replace(dims.vision, image_px=image_px))
    config = config_of(dims)
    torch.manual_seed(seed)
    with torch.device(device):
        network = FAMILY._from_config(config, attn_implementation=attention, dtype=dtype)
    digest = hashlib.sha256(json.dumps([name, asdict(dims)]).encode()).hexdigest()
    return as_loaded(network, tokenizer_of(EGOTINY), name, digest)


def config_of(dims: ModelDims) -> InternVLConfig:
    """Make the transformers configuration of a row of `dims.NAMED`."""
    vision, text = dims.vision, dims.text
    return InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=vision.hidden, num_hidden_layers=vision.layers, num_attention_heads=vision.heads,
            intermediate_size=vision.ffn, image_size=(vision.image_px, vision.image_px),
            patch_size=(vision.patch_px, vision.patch_px), norm_type=vision.norm,
            use_qk_norm=vision.qk_norm, attention_bias=vision.attention_bias,
            layer_scale_init_value=vision.layer_scale,
        ),
        text_config=Qwen2Config(
            hidden_size=text.hidden, num_hidden_layers=text.layers, num_attention_heads=text.heads,
            num_key_value_heads=text.kv_heads, intermediate_size=text.ffn, vocab_size=text.vocab,
            max_position_embeddings=text.max_positions, tie_word_embeddings=dims.is_tied,
            rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
        ),
        image_token_id=dims.image_token_id,
        image_seq_length=(vision.image_px // vision.patch_px // 2) ** 2,
        tie_word_embeddings=dims.is_tied,
    )  # fmt: skip


def tokenizer_of(folder: Path) -> Any:
    """Read the tokenizer of a checkpoint folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _folder(model: Mapping[str, Any]) -> Path | None:
    """Find the checkpoint folder that is asked for; None where weights are drawn."""
    if model.get("path"):
        folder = Path(model["path"]).expanduser()
        if not (folder / "config.json").is_file():
            raise InvalidInput([_mistake("model.path", f"no config.json in {folder}", "a checkpoint folder")])
        return folder
    name, weights = model.get("name"), model.get("weights")
    if name not in NAMED:
        raise InvalidInput([_mistake("model.name", f"unknown model {name!r}", ", ".join(sorted(NAMED)))])
    if weights == "random":
        return None
    if name == "egotiny":
        return EGOTINY
    todo = "write weights: random, or path: FOLDER of a local checkpoint"
    raise InvalidInput([_mistake("model.weights", f"no weights of {name} are shipped", "random", todo)])


def _mistake(where: str, what: str, allowed: str, todo: str = "") -> Mistake:
    return Mistake(where, what, f"allowed: {allowed}", todo)


def _from_folder(
    folder: Path, name: str, attention: str | dict[str, str], dtype: torch.dtype, device: torch.device
) -> LoadedModel:
    disable_progress_bar()  # type: ignore[no-untyped-call]  # a log file is no terminal
    if device.type == "meta":
        # Another rank reads the weights. To read them here and move them would also make two parameters of a tied one.
        with device:
            config = FAMILY.config_class.from_pretrained(folder, local_files_only=True)
            network = FAMILY._from_config(config, attn_implementation=attention, dtype=dtype)
        if (folder / "generation_config.json").is_file():
            network.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    else:
        network = FAMILY.from_pretrained(folder, attn_implementation=attention, dtype=dtype, local_files_only=True)
    return as_loaded(network.to(device), tokenizer_of(folder), name, digest_of(folder))


def digest_of(folder: Path) -> str:
    """Hash small checkpoints whole; name big shards by size and time, which costs no reading."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        stat = path.stat()
        digest.update(path.name.encode())
        small = stat.st_size < 64 * 2**20
        digest.update(path.read_bytes() if small else f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def as_loaded(network: Any, tokenizer: Any, name: str, digest: str) -> LoadedModel:
    """Put a network, in evaluation mode, together with what batches need to know about it."""
    config = network.config
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    # Random weights of a large vocabulary still speak egotiny's tokens, whose ids are all valid.
    config.image_token_id = image_id
    end_id, pad_id = tokenizer.convert_tokens_to_ids(END), tokenizer.convert_tokens_to_ids(PAD)
    network.generation_config.eos_token_id = end_id
    network.generation_config.pad_token_id = pad_id
    network.eval()
    image_px, patch_px = config.vision_config.image_size[0], config.vision_config.patch_size[0]
    num_image_tokens = int((image_px // patch_px * config.downsample_ratio) ** 2)
    return LoadedModel(network, tokenizer, name, image_px, patch_px, num_image_tokens, image_id, pad_id, end_id, digest)
