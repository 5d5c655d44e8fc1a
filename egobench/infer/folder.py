"""The folders that runtimes read: what is kept beside graphs and weights, and what they take on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import torch

from egobench.compress.checkpoint import config_of
from egobench.compress.load import load_quantized
from egobench.errors import InvalidInput, Mistake
from egobench.infer.session import Facts
from egobench.models.internvl import LoadedModel, build, tokenizer_of
from egobench.models.prompt import END, IMAGE_TOKEN, PAD

_NO_WEIGHTS: Final = frozenset({".json", ".txt", ".md", ".jinja", ".model", ".sh"})
"""Endings of tokenizers, settings and prose."""
_BESIDE: Final = ("tokenizer*.json", "special_tokens_map.json", "*.jinja", "vocab.json", "merges.txt")


def size_on_disk_bytes(folder: Path) -> int:
    """Return what weights and graphs take."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if path.suffix not in _NO_WEIGHTS)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Put a model's tokenizer beside what was exported of it."""
    for pattern in _BESIDE:
        for path in source.glob(pattern):
            if path.resolve() != (target / path.name).resolve():
                shutil.copyfile(path, target / path.name)


def facts_of(loaded: LoadedModel) -> Facts:
    """Return what whoever asks has to know of a model."""
    return Facts(
        image_px=loaded.image_px,
        num_image_tokens=loaded.num_image_tokens,
        image_token_id=loaded.image_token_id,
        pad_token_id=loaded.pad_token_id,
        end_token_id=loaded.end_token_id,
        vocab_size=int(loaded.model.config.text_config.vocab_size),
    )


def facts_of_folder(folder: Path) -> Facts:
    """Return the same of a model folder, without its weights."""
    config, tokenizer = config_of(folder), tokenizer_of(folder)
    size = config["vision_config"]["image_size"]
    return Facts(
        image_px=int(size[0] if isinstance(size, list) else size),
        num_image_tokens=int(config["image_seq_length"]),
        image_token_id=int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)),
        pad_token_id=int(tokenizer.convert_tokens_to_ids(PAD)),
        end_token_id=int(tokenizer.convert_tokens_to_ids(END)),
        vocab_size=int(config["text_config"]["vocab_size"]),
    )


def load_plain(folder: Path) -> LoadedModel:
    """Load an unquantized model to export it, float32 on the CPU.

    Raises:
        InvalidInput: it is quantized already: a runtime's own quantizer starts from the parent.
    """
    if "quantization_config" in config_of(folder):
        todo = "give the unquantized parent: this runtime quantizes it itself"
        raise InvalidInput([Mistake(str(folder), "is quantized already", "allowed: an unquantized model", todo)])
    return build({"path": str(folder)}, attention="sdpa", dtype=torch.float32, device=torch.device("cpu"), seed=0)


def load_any(folder: Path, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Load a plain or a quantized model folder, ready for its parts to be called one by one."""
    loaded = load_quantized(folder, device, dtype)
    if "quantization_config" in config_of(folder):
        _awaken(loaded)
    return loaded


@torch.no_grad()
def _awaken(loaded: LoadedModel) -> None:
    """Call the whole model once: compressed-tensors unpacks weights then, and not when a part is called."""
    device = loaded.model.device
    ids = torch.full((1, loaded.num_image_tokens), loaded.image_token_id, device=device)
    pixels = torch.zeros(1, 3, loaded.image_px, loaded.image_px, device=device, dtype=loaded.model.dtype)
    loaded.model(input_ids=ids, pixel_values=pixels, use_cache=False)
