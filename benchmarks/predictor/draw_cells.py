"""Draw cells at random, where nobody chose them: the closed form is held against traces of them.

    cd benchmarks/predictor
    python draw_cells.py --seed 11 --number 260 > drawn.yaml
    python compare_trace.py --processes 2 --out drawn_table.csv drawn.yaml

Values that no trace can see (4-bit weights, offloading, compiled and fused kernels) are not drawn. The plan leaves out
what cannot run.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import Any, Final

import yaml

WORKLOAD: Final = "internvl-edge-drawn"
VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "method": ("full", "full", "lora", "dora", "freeze"),
    "projector": ("trained", "frozen"),
    "lora_targets": ("llm", "all-linear", ".*self_attn.(q|v)_proj"),
    "precision": ("fp32", "tf32", "bf16", "bf16", "bf16", "bf16_pure", "bf16_pure", "fp16"),
    "attention": ("eager", "sdpa", "sdpa_flash", "flash_attention_2", "sdpa_efficient"),
    "vision_attention": ("same", "same", "eager"),
    "checkpointing": ("none", "full", "selective", "every_2", "every_4"),
    "vision_checkpointing": ("same", "same", "none", "full", "selective"),
    "padding": ("max", "dynamic", "packed"),
    "optimizer": ("adamw", "adamw_fused"),
    "loss": ("plain", "chunked"),
    "strategy": ("single", "ddp", "fsdp", "fsdp", "zero1", "zero2", "zero3"),
    "sharding": ("full_shard", "shard_grad_op", "hybrid_shard"),
    "num_accumulation_steps": (1, 1, 2),
    "micro_batch_size": (2, 8),
    "gpus": (2, 4, 8, 16),
}
"""Axis -> what is drawn from; some values are there twice."""


def draw(dice: random.Random) -> dict[str, Any]:
    """Draw one cell; what says nothing beside another value is left out."""
    cell = {name: dice.choice(values) for name, values in VALUES.items()}
    if cell["strategy"] == "single":
        cell["gpus"] = 1
    if cell["strategy"] != "fsdp":
        del cell["sharding"]
    if cell["method"] not in ("lora", "dora"):
        del cell["lora_targets"]
    if cell["method"] == "full":
        del cell["projector"]
    return {"workload": WORKLOAD, **cell}


def matrix(number: int, seed: int) -> dict[str, Any]:
    """Return a matrix of drawn cells."""
    dice = random.Random(seed)
    workload = {
        "why": "A small model, at batches whose activations outweigh its states.",
        "model": {"name": "internvl-edge", "weights": "random"},
        "data": {"format": "egoworld", "domain": "workshop", "num_train": 64, "num_validation": 8},
        "recipe": {"num_steps": 4, "learning_rate": 1e-4, "max_length": 512},
        "evaluation": {"num_questions": 0},
        "image_px": 224,
    }
    return {
        "name": "drawn",
        "why": "Cells drawn at random. Is the closed form right where nobody looked?",
        "site": "dgx-a100",
        "workloads": {WORKLOAD: workload},
        "include": [{"workload": WORKLOAD, "micro_batch_size": 1}, *(draw(dice) for _ in range(number))],
        "baseline": {"micro_batch_size": 1},
    }


def main() -> None:
    """Print the matrix."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    print("# yaml-language-server: $schema=../../egobench/spec/matrix.schema.json")
    print(f"# Drawn by benchmarks/predictor/draw_cells.py --number {given.number} --seed {given.seed}; do not edit.")
    yaml.safe_dump(matrix(given.number, given.seed), sys.stdout, sort_keys=False, default_flow_style=None, width=200)


if __name__ == "__main__":
    main()
