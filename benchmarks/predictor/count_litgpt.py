"""Count what a block of litgpt saves for its backward pass, in bf16 on the CPU.

    git -C LITGPT checkout 00af8b0d && : > LITGPT/litgpt/__init__.py    # which would import all that it serves with
    python benchmarks/predictor/count_litgpt.py LITGPT TinyLlama all

It needs the packages lightning, lightning_utilities and torchmetrics. A CPU's dropout saves its mask in 16 bits, a
GPU's in bytes.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

NAMES = {"TinyLlama": "tiny-llama-1.1b", "Llama-2": "Llama-2-7b-hf", "phi-2": "phi-2"}
ADAPTED = {
    "none": (),
    "qv": ("query", "value"),
    "all": ("query", "key", "value", "projection", "mlp", "head"),
}
ROWS, LENGTH = 2, 512


def saved_bytes(lora: Any, chunked_cross_entropy: Any, name: str, adapted: tuple[str, ...], layers: int) -> int:
    """Return the bytes of all storages that are saved, but weights and buffers."""
    adapters = {"lora_r": 32, "lora_alpha": 16, "lora_dropout": 0.05} if adapted else {}
    config = lora.Config.from_name(name, **adapters, **{f"lora_{part}": True for part in adapted})
    config.n_layer = layers
    torch.set_default_dtype(torch.bfloat16)
    model = lora.GPT(config)
    torch.set_default_dtype(torch.float32)
    model.max_seq_length = LENGTH
    if adapted:
        lora.mark_only_lora_as_trainable(model)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, config.vocab_size, (ROWS, LENGTH))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(ids, lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]
        loss = chunked_cross_entropy(logits, ids[..., 1:])
    assert loss.requires_grad
    return sum(size for pointer, size in found.items() if pointer not in own)


def main() -> None:
    """Print bytes per position: of one block more, and of all that is no block."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("litgpt", help="a checkout of Lightning-AI/litgpt")
    parser.add_argument("model", choices=NAMES)
    parser.add_argument("adapted", choices=ADAPTED)
    asked = parser.parse_args()
    sys.path.insert(0, asked.litgpt)
    lora, utils = importlib.import_module("litgpt.lora"), importlib.import_module("litgpt.utils")
    one, two = (
        saved_bytes(lora, utils.chunked_cross_entropy, NAMES[asked.model], ADAPTED[asked.adapted], layers)
        for layers in (1, 2)
    )
    print(f"a block: {(two - one) / (ROWS * LENGTH):,.0f}; beside blocks: {(2 * one - two) / (ROWS * LENGTH):,.0f}")


if __name__ == "__main__":
    main()
