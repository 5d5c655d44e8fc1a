"""A Hugging Face folder as a server finds it: are all weights there, whole, and of the shapes that the model has?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from egobench.compress.checkpoint import config_of
from egobench.errors import InvalidInput, Mistake

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor -> (dtype as safetensors writes it, shape)."""

_INDEX: Final = "model.safetensors.index.json"


def shapes_of(folder: Path) -> Shapes:
    """Read the headers of a folder's weights.

    Raises:
        InvalidInput: naming every file that is missing or cut off, and every tensor that the index promises and no
            file holds.
    """
    from safetensors import SafetensorError, safe_open

    promised = _promised(folder)
    files = sorted({*promised.values()}) or sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        raise InvalidInput([Mistake(str(folder), "holds no weights", "allowed: *.safetensors")])
    mistakes: list[Mistake] = []
    found: Shapes = {}
    for name in files:
        try:
            with safe_open(folder / name, framework="np") as held:
                for key in held.keys():  # noqa: SIM118 - no mapping
                    part = held.get_slice(key)
                    found[key] = (part.get_dtype(), tuple(part.get_shape()))
        except (OSError, SafetensorError) as error:
            mistakes.append(
                Mistake(str(folder / name), f"cannot be read: {error}", "allowed: a whole safetensors file")
            )
    lost = [] if mistakes else sorted(set(promised) - set(found))
    mistakes += [Mistake(f"{folder / _INDEX}: {key}", "is in no file") for key in lost]
    if mistakes:
        raise InvalidInput(mistakes)
    return found


def _promised(folder: Path) -> Mapping[str, str]:
    path = folder / _INDEX
    if not path.exists():
        return {}
    try:
        made: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError) as error:
        raise InvalidInput([Mistake(str(path), f"cannot be read: {error}", "allowed: a safetensors index")]) from error
    return made


def check_servable(folder: Path, architectures: Mapping[str, str], quantizations: tuple[str, ...]) -> dict[str, Any]:
    """Check what a server reads of a folder; return its architecture, quantization and number of tensors.

    Args:
        folder: A model, plain or quantized.
        architectures: Those that the server knows, each with where that is written.
        quantizations: Values of `quant_method` that it reads.

    Raises:
        InvalidInput: everything that is wrong at once.
    """
    config = config_of(folder)
    mistakes: list[Mistake] = []
    named = config.get("architectures") or [None]
    if named[0] not in architectures:
        allowed = f"allowed: {', '.join(architectures)}"
        mistakes.append(Mistake(str(folder / "config.json"), f"architectures is {named}", allowed))
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method is not None and method not in quantizations:
        allowed = f"allowed: {', '.join(quantizations)}"
        mistakes.append(Mistake(str(folder / "config.json"), f"quant_method is {method!r}", allowed))
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            mistakes.append(Mistake(str(folder / name), "is missing", "allowed: what `save: {export: merged}` leaves"))
    try:
        num_tensors = len(shapes_of(folder))
    except InvalidInput as error:
        mistakes += error.mistakes
    if mistakes:
        raise InvalidInput(mistakes)
    return {"architecture": named[0], "quantization": method, "num_tensors": num_tensors}
