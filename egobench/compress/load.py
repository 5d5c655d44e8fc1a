"""Read a folder that a quantizer wrote, or a plain one, with nothing but the folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers.utils.logging import disable_progress_bar

from egobench.compress.checkpoint import WHERE, config_of, needs, weight_files
from egobench.compress.packed import talking_to_stderr
from egobench.errors import InvalidInput, Mistake
from egobench.models.internvl import FAMILY, LoadedModel, as_loaded, digest_of, tokenizer_of

PACKAGES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "awq": (("gptqmodel", "quant"),),
    "gptq": (("gptqmodel", "quant"), ("optimum", "quant")),
    "torchao": (("torchao", "torchao"),),
    "compressed-tensors": (("compressed_tensors", "quant"),),
}
"""`quant_method` of a configuration -> what transformers reads it with, and the extra that brings it."""
FP8_CAPABILITY: Final = (8, 9)


def load_quantized(folder: Path, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Load a model in evaluation mode; what is not quantized is in `dtype`.

    Raises:
        InvalidInput: no checkpoint, a damaged one, or one whose tensors are not those of its configuration.
        EnvironmentProblem: a package that reads it is missing.
    """
    method = (config_of(folder).get("quantization_config") or {}).get("quant_method")
    if method is not None and method not in PACKAGES:
        what = f"{folder} is quantized with {method!r}"
        raise InvalidInput([Mistake(WHERE, what, f"allowed: {', '.join(PACKAGES)}, or a plain folder")])
    weight_files(folder)
    for package, extra in PACKAGES.get(method or "", ()):
        needs(package, f"{folder}: reading {method}", extra)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # a log file is no terminal
    with talking_to_stderr():
        network, found = FAMILY.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True, output_loading_info=True,
            **_on(device, method),
        )  # fmt: skip
    # transformers only warns, and gives a tensor that is missing random numbers.
    wrong = [f"{name}: {kind} tensor" for kind in ("missing", "unexpected") for name in found[f"{kind}_keys"]]
    wrong += [f"{name[0]}: shape {tuple(name[1])}, expected {tuple(name[2])}" for name in found["mismatched_keys"]]
    if wrong:
        what = f"{len(wrong)} tensors do not fit config.json, such as {sorted(wrong)[0]}"
        raise InvalidInput([Mistake(str(folder), what, "the tensors that its configuration names")])
    return as_loaded(network.to(device), tokenizer_of(folder), folder.name, digest_of(folder))


def _on(device: torch.device, method: str | None) -> dict[str, Any]:
    """Return what else `from_pretrained` is told."""
    if device.type == "cpu":
        return {}
    more: dict[str, Any] = {"device_map": {"": device}}  # a packed layer is laid out for its device while it is read
    if method == "compressed-tensors" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY:
        from transformers import CompressedTensorsConfig

        more["quantization_config"] = CompressedTensorsConfig(use_optimized_inference=True)
    return more


def held_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers as they lie in memory: packed ones count as packed."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in _parts(tensors)}
    return sum(storages.values())


def _parts(tensors: list[Any]) -> Iterator[torch.Tensor]:
    """Yield the plain tensors that torchao's are made of."""
    for tensor in tensors:
        if hasattr(tensor, "__tensor_flatten__"):
            names, _ = tensor.__tensor_flatten__()
            yield from _parts([getattr(tensor, name) for name in names])
        else:
            yield tensor
