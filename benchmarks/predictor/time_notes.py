"""What the scoreboard of time says beside its numbers: how it was fitted, and why some rows are far off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.predictor.published import Published

NOTES: Final = [
    "Made by `python -m benchmarks.predictor.score_time`; do not edit. Signed error is predicted / measured - 1.",
    "",
    "- `fitted`: Mosaic (llm-foundry), fms-acceleration on A100 and answer.ai's FSDP + QLoRA gave the sixteen rates of",
    "  `egobench/predict/rates.py` that say so, in one robust fit with priors; swift's 4-bit rows gave the cost of",
    "  unpacking. `judged`: everything else.",
    "- How many bytes a loop's operations move is counted by hand from what it does, before any row of torchtitan,",
    "  torchtune or IBM was looked at; fms' quantised and GPT-BigCode loops were recounted after their rows were. The",
    "  500 W H100 follows from the 700 W one by the cube root of the power.",
    "- Judged rows that were seen before a number was settled: FlashAttention-2 on Hopper (0.42 became the 335 TFLOP/s",
    "  of its paper, after torchtitan's 32k row), an L40's share of its peak (that of an RTX 4090), the share of PCIe",
    "  (after L40), bytes of eager attention (20 became 24) and Qwen's joined q, k, v (after swift's ratios), that",
    "  torchtune's chunked loss repeats no logits, and an update on Ada finds nothing in its cache (after PEFT's).",
    "- Of the judged pairs, 13 with and without checkpointing share one run (swift); most of n to 2n GPUs are L40s,",
    "  whose link is not stated.",
    "- Rows that state samples/s of unknown length (swift, LLaVA) are judged by ratios alone, litgpt's",
    "  seconds per iteration not at all: its samples are a tenth of the stated maximum, and launches decide.",
]


@dataclass(frozen=True)
class Explained:
    """Why some rows are far off."""

    matches: Callable[[Published, float], bool]
    why: str


def _is(source: str, *words: str) -> Callable[[Published, float], bool]:
    return lambda row, _: row.source.startswith(source) and all(word in row.name for word in words)


EXPLAINED: Final = (
    Explained(
        _is("fsdp_qlora", "RTX3090"),
        "gathering 13.5 GB takes 4.4 s at any batch: 3 GB/s, a narrow slot; PCIe 4.0 is taken for 11",
    ),
    Explained(
        _is("fsdp_qlora", "RTX6000Ada"),
        "two and four rented GPUs are equally slow, at a fifth of their peak: their link is slower than its PCIe",
    ),
    Explained(_is("fsdp_qlora", "24576"), "attention over one row of 24k: on Ada it reaches more than on A100"),
    Explained(_is("fsdp_qlora", "A5000"), "its peak and power are from memory"),
    Explained(_is("fsdp_qlora"), "adapters and dequantisation of a loop of its own, counted as PEFT's"),
    Explained(
        _is("fms_refs_a100", "santacoder", "2x"),
        "a small model: FSDP's own Python takes as long as the GPU, and rows of the same run differ by 40 %",
    ),
    Explained(_is("fms_refs_a100", "santacoder"), "GPT-BigCode's eager operations are counted from its code by hand"),
    Explained(
        _is("mosaic", "30b", "batch 1 x 8192"), "the card is full: the allocator frees and asks again; 4096 runs"
    ),
    Explained(_is("mosaic", "70b", "a100_40gb batch 2"), "the same; with 128 GPUs and room it runs 36 % faster"),
    Explained(_is("mosaic", "70b", "batch 2 x"), "the same"),
    Explained(_is("mosaic", "MPT-1b", "32xa100_40gb"), "an outlier: 16 and 64 GPUs run 22 % faster in the same table"),
    Explained(_is("mosaic", "760m", "a100_80gb"), "an outlier: slower than the A100-40GB with the same flags"),
    Explained(_is("mosaic", "760m", "8xh100_80gb batch 24"), "an outlier: 16 and 32 GPUs run 8 % faster each"),
    Explained(_is("torchtitan", "32768"), "attention over one row of 32k on the 500 W part, with 90 of 95 GB in use"),
    Explained(_is("torchtitan", "selective(op)"), "eager operations of torchtitan are counted as transformers' own"),
    Explained(_is("ibm", "HSDP"), "what links the nodes is not stated, and small batches leave gradients exposed"),
    Explained(
        _is("fms_refs_l40", "lora none"),
        "adapters' fp32 copies: the cache of Ada holds more of them than what answer.ai's rows say on average",
    ),
    Explained(_is("fms_refs_l40", "2x"), "what links the two cards is not stated"),
)
"""Checked in order; the first that matches explains a row."""


def why(row: Published, error: float) -> str:
    """Return why a row is far off, an empty string where nobody knows."""
    return next((each.why for each in EXPLAINED if each.matches(row, error)), "")
