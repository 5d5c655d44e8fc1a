"""A third blind test: runs whose lengths are exact and whose loops were read, looked for after the second one.

    python -m benchmarks.predictor.exact

prints the page and writes `exact.md` next to this file. `exact.csv` holds the rows as they were read; it and the
descriptions of two loops that are new in it were committed before any error had been computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from benchmarks.predictor.rows import page_of

HERE: Final = Path(__file__).parent
TABLE: Final = HERE / "exact.csv"
HEADING: Final = """\
# A third blind test: runs of exact lengths

Made by `python -m benchmarks.predictor.exact`; do not edit. Signed error is predicted / measured - 1. `exact.csv`
says how each run was read; it was committed before any error had been computed, with all constants.

- **prime-rl** (PrimeIntellect-ai/prime-rl, benchmarks/baselines at d8f290e): Qwen3 0.6B and 4B, FSDP 2 with fp32
  weights, compiled blocks, made-up samples of exactly 8,192 to 65,536 tokens, two micro-steps. Its supervised loop
  does what ours does, and is read as ours; its reinforcement loop makes no logits but by chunks of the vocabulary.
- **torchao float8** (pytorch/ao at 8c81863 and after): Llama-3 8B by torchtitan on eight H100 of 95 GiB. The same
  settings were measured in February and in June 2025, at 47.7 and 30.9 GiB.
- **torchtune README** (pytorch/torchtune at 0217d44, May 2024): adapters on Llama-2 7B and 70B, in 10^9 bytes.
- **ms-swift headers** (modelscope/ms-swift, comments in its examples): Qwen2.5 7B packed to 8,192 and 16,384 tokens,
  ZeRO-3.

## The blind run
"""
FIRST_RUN: Final = """\
Not yet run.
"""
LEFT_OUT: Final = """\
- prime-rl's adapters, whose frozen weights stay in 32 bits, its activations on the host, its mixtures of experts.
- torchao's other kinds of float8, MI300X and B200; its 1B, whose gigabyte of samples lies on the GPU.
- torchtune's rows whose checkpointing, optimizer or number of GPUs is in doubt; ms-swift's videos, whose texts have
  no stated length, and its tensor parallelism.
"""


def page() -> str:
    """Return the page."""
    return page_of(TABLE, HEADING, FIRST_RUN, LEFT_OUT)


def main() -> None:
    """Write and print the page."""
    text = page()
    (HERE / "exact.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
