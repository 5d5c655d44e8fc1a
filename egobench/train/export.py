"""The trained model as a plain Hugging Face folder, which `from_pretrained` and egobench itself read.

Weights come from the strategy, whole and on the first rank's CPU; they are written through a model that has shapes
only, so that neither wrappers nor a spread model are in the way, and no GPU holds a copy.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from egobench.models.internvl import EGOTINY, FAMILY
from egobench.models.parts import core
from egobench.models.pixels import MEAN, STD
from egobench.records.store import TrialPaths, disk_errors
from egobench.spec import axes as tables
from egobench.train.losses import OWN
from egobench.train.resolve import resolve

if TYPE_CHECKING:
    from egobench.train.setup import Work

_OURS: Final = frozenset({"config.json", "generation_config.json", "README.md"})
_BITS: Final = ".weight."
"""bitsandbytes writes what it needs to read a 4-bit matrix beside it, as `<name>.weight.<what>`."""


def export(work: Work, paths: TrialPaths) -> None:
    """Leave `<trial>/model/`, where the trial asks for it; every rank calls it, when training is over.

    `merged`: the whole model, adapters added into its matrices. `adapters`: what PEFT reads on top of the model that
    training began with; the whole model where the method has no adapters.

    Raises:
        EnvironmentProblem: the disk is full.
    """
    kind = work.trial.save.export
    if kind == "none":
        return
    work.stages.outside("save")
    weights = {name: one for name, one in work.strategy.weights().items() if OWN not in name.split(".")}
    if work.rank.is_first:
        scratch = paths.folder / f".{paths.model.name}"
        with disk_errors(paths.model):
            for left in (scratch, paths.model):
                shutil.rmtree(left, ignore_errors=True)
            scratch.mkdir(parents=True)
            live = work.strategy.unwrap(work.model)
            if kind == "adapters" and _has_adapters(live):
                _write_adapters(work, live, weights, scratch)
            else:
                _write_model(work, live, weights, scratch)
            work.material.tokenizer.save_pretrained(scratch)
            _write_processor(work, scratch)
            os.replace(scratch, paths.model)
    work.strategy.gather(None)  # nobody leaves while the first rank is still at it


def _has_adapters(live: Any) -> bool:
    return hasattr(live, "peft_config")


def _write_adapters(work: Work, live: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
    config = live.peft_config["default"]
    source = _source(work)
    config.base_model_name_or_path = str(source) if source is not None else None
    # PEFT would ask the Hub whether the vocabulary has grown; adapters never are on the embedding here.
    live.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form to fill in


def _write_model(work: Work, live: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
    weights = _unpacked(live, weights)
    plain = core(live)
    # The widest format of all: whoever loads the folder in the format that it names loses nothing, and what adapters
    # have learned is not rounded to the format of the frozen matrices that it is added to.
    formats = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    widest = max(formats, key=lambda dtype: torch.finfo(dtype).bits)
    with torch.device("meta"):
        shell = FAMILY._from_config(copy.deepcopy(plain.config), dtype=widest)
    shell.generation_config = plain.generation_config
    if _has_adapters(live):
        from egobench.train.adapters import merge

        axes = work.trial.cell.axes
        # Without their bits 4-bit matrices are plain ones, with the same adapters.
        method = "lora" if axes["method"] == "qlora" else axes["method"]
        adapted: nn.Module = resolve(tables.METHODS, method, "axes.method")(shell, axes)
        # A copy: on a CPU the weights are the live model's own memory, which merging would write to.
        own = {name: one.to(widest, copy=True) if one.is_floating_point() else one for name, one in weights.items()}
        adapted.load_state_dict(own, assign=True)
        shell = merge(adapted)
        weights = shell.state_dict()
    else:
        weights = {name: one.to(widest) if one.is_floating_point() else one for name, one in weights.items()}
    shell.save_pretrained(folder, state_dict=weights)


def _unpacked(live: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights with 4-bit matrices as those that they stand for, in the format that they are multiplied in."""
    # PEFT's layer around bitsandbytes' has the same name, but no bits of its own.
    found = ((name, module) for name, module in live.named_modules() if type(module).__name__ == "Linear4bit")
    small = {name: module for name, module in found if hasattr(module, "quant_state")}
    if not small:
        return weights
    from bitsandbytes.functional import dequantize_4bit

    plain = {name: tensor for name, tensor in weights.items() if name.partition(_BITS)[0] not in small}
    for name, module in small.items():
        key = f"{name}.weight"
        packed = weights[key].to(module.quant_state.absmax.device)
        plain[key] = dequantize_4bit(packed, module.quant_state).to(module.compute_dtype).cpu()
    return plain


def _source(work: Work) -> Path | None:
    """Return the folder that training began with; None where weights were drawn."""
    spec = work.trial.cell.workload.model
    if spec.path is not None:
        return Path(work.trial.placement.base_folder, Path(spec.path).expanduser()).resolve()
    return EGOTINY if spec.name == "egotiny" and spec.weights == "shipped" else None


def _write_processor(work: Work, folder: Path) -> None:
    """Add what `AutoImageProcessor` and `AutoProcessor` read: the source's own files, else those of our pictures."""
    source = _source(work)
    found = [*source.glob("*.json"), *source.glob("*.jinja")] if source is not None else []
    for path in found:
        is_index = path.name.endswith(".index.json")
        if not is_index and path.name not in _OURS and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    preprocessor = folder / "preprocessor_config.json"
    if not preprocessor.exists():
        preprocessor.write_text(json.dumps(_pictures(work.material.data.image_px), indent=2) + "\n")


def _pictures(image_px: int) -> Mapping[str, Any]:
    """Describe how training saw pictures, in transformers' words: `models/pixels.py`."""
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": False,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": image_px, "width": image_px},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
