"""A blind test: the fine-tuning table of Qwen's README, which no constant and no description of a loop has seen.

    python -m benchmarks.predictor.blind

prints the page and writes `blind.md` next to this file. `qwen_readme.csv` holds the table ("Profiling of Memory and
Speed", QwenLM/Qwen, README.md at 03cd81f): one row a cell. What each method is taken to be was read off the README and
finetune.py, and committed before any error had been computed. What the first run said stays in the page; the rows below
it are of the predictor as it is.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.predictor.gpus import gpu_named
from benchmarks.predictor.models import shape_named
from benchmarks.predictor.rows import Scored, page_of, scored_row, write
from egobench.predict.setting import Batch, Machine, Setting
from egobench.spec.axes import AXES

HERE: Final = Path(__file__).parent
TABLE: Final = HERE / "qwen_readme.csv"
NUM_MICRO_STEPS: Final = 8
METHODS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    # HF Trainer with 16-bit weights and PEFT, as swift's loop is described, which trained the same models.
    "LoRA": ("swift_qwen", {"method": "lora", "strategy": "single", "precision": "bf16_pure"}),
    # GPTQ weights; "for single-GPU training, we have to use DeepSpeed": its script's ZeRO-2.
    "Q-LoRA": ("qwen_gptq", {"method": "qlora", "strategy": "zero2", "precision": "bf16"}),
    # finetune_ds.sh: ZeRO-3, on one GPU too.
    "Full-parameter": ("qwen", {"method": "full", "strategy": "zero3", "precision": "bf16"}),
    # finetune_lora_ds.sh: ZeRO-2.
    "LoRA (multinode)": ("qwen", {"method": "lora", "strategy": "zero2", "precision": "bf16"}),
    "LoRA + Deepspeed Zero3": ("qwen", {"method": "lora", "strategy": "zero3", "precision": "bf16"}),
}
HEADING: Final = """\
# A blind test: Qwen's own table of fine-tuning

Made by `python -m benchmarks.predictor.blind`; do not edit. Signed error is predicted / measured - 1. Batches of 1, 8
micro-steps, A100-80GB SXM, 256 to 8,192 tokens. How each method was read was committed before any error had been
computed, and so were all constants. The README does not say how memory was taken: it is held against what a GPU shows
to be in use.

## The blind run
"""
FIRST_RUN: Final = """\
As it was when the table was first read, 63 rows: **memory: median 6.6 %, 90th percentile 22.1 %, bias -2.5 %;
tokens/s: median 19.1 %, 90th percentile 66.6 %, bias -1.9 %. All of these ran; 3 were said to be out of memory.** The
goal (memory 3 % and 10 %, time 10 %) was missed.

What it taught:
- Adapters on one GPU, 7B and 14B: median 5.0 %, 90th percentile 7.3 %. The rest is worse for reasons that can be
  named.
- Full fine-tuning of the 7B with ZeRO-3 was 10 to 28 % high, and is the three false out-of-memory: stage 3 updates a
  sub-group of 10^9 numbers at a time, so the update's temporaries are those of one. Read in DeepSpeed's source,
  **mended since**; the same makes the 1.8B on one GPU, which was right by chance, 13 % low.
- `G` cannot be GiB: 81 on a GPU that has 79.2. It is read as 10^9 bytes below, as the README of Qwen-VL says GB.
- Q-LoRA at 4,096 and 8,192 tokens was up to 43 % high: where DeepSpeed runs it, nothing autocasts Qwen's own loss,
  which copies its logits but never makes 32 bits of them: 6 bytes per position and token of the vocabulary, not 12.
  Read in its modeling file, **mended since** for all that DeepSpeed runs; the adapters on two nodes were better
  without.
- The 72B with ZeRO-3 and adapters is 7 GB low at 256 tokens, 2 GB at 8,192: not understood.
- Speed: two nodes were taken to have a network of 200 GB/s, which the README does not say. ZeRO-3 on one GPU takes
  260 ms a micro-step however short, which had made the 1.8B up to 217 % too fast: hooks on the host, **mended since**
  by what they take in our own loop on a CPU (`benchmarks/gather_hooks.py`), not by these rows. From 2,048 tokens on
  adapters train 15 to 20 % faster than predicted: Qwen's own kernels for norms and rotations may be why.
"""
LEFT_OUT: Final = {"LoRA (emb)": "adapters beside a trained embedding and head are no method of egobench"}


def setting_of(row: dict[str, str]) -> Setting:
    """Return what a row is taken to be: rows padded to their length, full checkpointing, FlashAttention-2."""
    software, own = METHODS[row["method"]]
    gpus, length = int(row["num_nodes"]) * int(row["gpus_per_node"]), int(row["length"])
    axes = {name: axis.default for name, axis in AXES.items()} | {
        "workload": "published", "gpus": gpus, "micro_batch_size": 1, "num_accumulation_steps": NUM_MICRO_STEPS,
        "optimizer": "adamw", "attention": "flash_attention_2", "checkpointing": "full", "padding": "max",
        "projector": "frozen", "lora_rank": 64, "lora_targets": ".*_proj", **own,
    }  # fmt: skip
    batch = Batch(1, length, 0.0, float(length), float(length), float(length) ** 2)
    machine = Machine(gpu_named("A100-80GB"), int(row["gpus_per_node"]), 200e9)
    return Setting(shape_named(f"qwen-{row['model']}"), axes, batch, batch, machine, software)


def score() -> Iterator[Scored]:
    """Predict every row. `G` is 10^9 bytes that the GPU shows to be in use; of several GPUs it is the sum."""
    with TABLE.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["method"] not in LEFT_OUT]
    for row in rows:
        setting, length = setting_of(row), int(row["length"])
        gpus = int(setting.axes["gpus"])
        yield scored_row(
            f"{row['model']} {row['method']}",
            f"{length:,} tokens",
            setting,
            "nvidia_smi",
            float(row["memory_g"]) * 1e9 / gpus,
            NUM_MICRO_STEPS * length * gpus / float(row["s_per_it"]),
        )


def page() -> str:
    """Return the page."""
    left_out = "".join(f"- {name}: {why}\n" for name, why in LEFT_OUT.items())
    return page_of(list(score()), HEADING, FIRST_RUN, left_out)


if __name__ == "__main__":
    write(HERE / "blind.md", page())
