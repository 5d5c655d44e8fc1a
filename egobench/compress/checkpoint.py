"""A Hugging Face folder as what is read and what is written: whole, or not at all."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from egobench.errors import EnvironmentProblem, InvalidInput, Mistake
from egobench.records.store import disk_errors

INDEX: Final = "model.safetensors.index.json"
WHERE: Final = "parent model"
FAMILY: Final = "internvl"


def config_of(folder: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        InvalidInput: there is none, or it is none.
    """
    path, todo = folder / "config.json", "give the folder of a model, as `save: {export: merged}` leaves it"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput([Mistake(WHERE, f"no config.json in {folder}", "a checkpoint folder", todo)]) from None
    except OSError as error:
        raise InvalidInput([Mistake(str(path), f"cannot be read: {error}", "a checkpoint folder", todo)]) from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise InvalidInput([Mistake(str(path), f"not JSON ({error})", "a checkpoint folder", todo)]) from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise InvalidInput([Mistake(str(path), "names no model_type", "a checkpoint folder", todo)])
    return config


def weight_files(folder: Path) -> list[Path]:
    """Name the files of the weights, each of them readable.

    Raises:
        InvalidInput: a file is missing, cut off or damaged; all of them at once.
    """
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise InvalidInput([Mistake(WHERE, f"no safetensors file in {folder}", "a checkpoint folder")])
    wrong = [(name, why) for name in names if (why := _damage(folder / name))]
    if wrong:
        todo = "train or quantize the parent again"
        raise InvalidInput([Mistake(str(folder / name), why, "whole safetensors files", todo) for name, why in wrong])
    return [folder / name for name in names]


def _damage(path: Path) -> str:
    # Opening reads the header and compares its offsets with the size of the file, which finds a cut-off one.
    try:
        with safe_open(path, framework="pt") as tensors:
            return "" if tensors.keys() else "holds no tensor"
    except FileNotFoundError:
        return "missing"
    except (SafetensorError, OSError) as error:
        return f"damaged ({error})"


def plain_source(folder: Path) -> dict[str, Any]:
    """Return the configuration of a folder that can be quantized.

    Raises:
        InvalidInput: no checkpoint, a damaged one, another family, or one that is quantized already.
    """
    config = config_of(folder)
    weight_files(folder)
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method is not None:
        what = f"{folder} is quantized already ({method})"
        raise InvalidInput([Mistake(WHERE, what, "a model in 16 or 32 bit", "quantize the model that it came from")])
    if config["model_type"] != FAMILY:
        raise InvalidInput([Mistake(WHERE, f"{folder} is a {config['model_type']!r} model", f"allowed: {FAMILY}")])
    return config


def needs(package: str, kind: str, extra: str, distribution: str | None = None) -> str:
    """Return name and version of an installed package, whose name on PyPI may be another one.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise EnvironmentProblem(f"{kind} needs {package}: pip install 'egobench[{extra}]'")
    return f"{distribution or package} {importlib.metadata.version(distribution or package)}"


@contextlib.contextmanager
def written_whole(source: Path, target: Path) -> Iterator[Path]:
    """Give a scratch folder, add what the source holds beside weights, and rename it to `target` when all went well.

    Raises:
        EnvironmentProblem: the disk is full.
    """
    scratch = target.with_name(f".{target.name}")
    with disk_errors(target):
        for left in (scratch, target):
            shutil.rmtree(left, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            yield scratch
            _copy_companions(source, scratch)
            os.replace(scratch, target)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def _copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, preprocessor and generation settings: byte for byte those of the parent."""
    for path in sorted(source.iterdir()):
        is_text = path.suffix in {".json", ".jinja", ".txt", ".model"}
        if is_text and path.is_file() and path.name != "config.json" and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)


def finish_config(source: dict[str, Any], folder: Path, **more: Any) -> None:
    """Write the parent's configuration with what the library says of its quantization, and nothing else of its changes.

    `more` goes into `quantization_config`. What is not quantized is in bfloat16, and said to be.
    """
    path = folder / "config.json"
    made = json.loads(path.read_text(encoding="utf-8"))["quantization_config"]
    written = _in_bfloat16(source) | {"quantization_config": made | more}
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _in_bfloat16(config: dict[str, Any]) -> dict[str, Any]:
    nested = {key: _in_bfloat16(value) for key, value in config.items() if key.endswith("_config")}
    formats = {key: "bfloat16" for key in ("dtype", "torch_dtype") if key in config}
    return config | nested | formats


def rest_to_bfloat16(model: nn.Module) -> None:
    """Store what was not quantized in bfloat16; scales keep their digits, and packed tensors their layout."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if type(tensor.data) is torch.Tensor and tensor.dtype == torch.float32 and not name.endswith("_scale"):
            tensor.data = tensor.data.to(torch.bfloat16)


def size_of(folder: Path) -> int:
    """Return the bytes of everything in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
