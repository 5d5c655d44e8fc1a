"""Published speeds of answering against the closed form: a decoding step on A100, A6000, RTX 4090 and Orin."""

from __future__ import annotations

import csv
import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.predictor.models import shape_named
from benchmarks.predictor.published import ANCHORS
from egobench.hardware import GPUS
from egobench.predict.inference import Format, Request, Runtime, predict_inference
from egobench.predict.rates import DEFAULT

NAMES: Final = (
    "Llama-2-7B", "LLaMA-2-7B", "Vicuna-7B", "LLaMA-2-13B", "Vicuna-13B", "Llama2-13B", "LLaMA-3-8B", "Llama-3-8B",
    "Mistral-7B", "MPT-7B", "MPT-30B",
)  # fmt: skip
"""Names in the tables; Falcon, VILA and others are left out."""
CARDS: Final = {
    "A100": "A100-80GB SXM", "A6000": "RTX A6000-48GB", "RTX4090": "RTX4090-24GB",
    "Jetson-AGX-Orin": "Jetson AGX Orin 64GB",
}  # fmt: skip
TECHNIQUES: Final[dict[str, Format]] = {"bf16": "bf16", "int8wo": "int8", "int4wo-64": "int4"}
DESKTOP: Final = dataclasses.replace(DEFAULT, op_s=10e-6)
"""Desktop processors launch operations faster than those of servers; decides TinyChat's 16-bit rows on an RTX 4090."""


@dataclass(frozen=True)
class Decoded:
    """One published speed of decoding."""

    source: str
    part: str
    name: str
    error: float
    """Predicted tokens/s over measured, less one."""


def _decoded(
    source: str, part: str, row: dict[str, str], request: Request, weights: Format, runtime: Runtime, measured: float
) -> Decoded:
    found = predict_inference(
        shape_named(row["model"]), GPUS[CARDS[row["gpu"]]], request, weights=weights, runtime=runtime, rates=DESKTOP
    )
    assert found is not None
    name = (
        f"{row['model']} {weights}, {row['gpu']}, {request.num_rows} x ({request.prompt:.0f} + {request.num_new:.0f})"
    )
    return Decoded(source, part, name, found.decode_tokens_per_s / measured - 1)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from (row for row in csv.DictReader(file) if row["model"] in NAMES)


def decoded(folder: Path = ANCHORS) -> list[Decoded]:
    """Return every speed of the three tables whose model, GPU and kernel are known."""
    found = []
    for row in _rows(folder / "torchao_inference_and_optim.csv"):
        if row["kind"] == "inference" and row["technique"] in TECHNIQUES:
            request, weights = Request(1, 8, num_new=200), TECHNIQUES[row["technique"]]
            speed = float(row["tokens_per_s"])
            found.append(_decoded("torchao", "fitted", row, request, weights, "compiled", speed))
    for row in _rows(folder / "awq_tinychat_latency.csv"):
        request = Request(1, 64, num_new=200)
        if row["fp16_ms_per_token"] != "OOM":
            speed = 1e3 / float(row["fp16_ms_per_token"])
            found.append(_decoded("TinyChat, 16 bits", "fitted", row, request, "fp16", "eager", speed))
        speed = 1e3 / float(row["int4_awq_ms_per_token"])
        found.append(_decoded("TinyChat, AWQ", "fitted", row, request, "int4", "compiled", speed))
    for row in _rows(folder / "autoawq_rtx4090.csv"):
        if row["kernel"] == "GEMV" and row["batch"] != "1":
            continue  # a kernel for one row, run once for each
        request = Request(int(row["batch"]), float(row["prefill"]), num_new=float(row["decode"]))
        speed = float(row["decode_tps"])
        found.append(_decoded("AutoAWQ", "judged", row, request, "int4", "compiled", speed))
    return found


def section() -> list[str]:
    """Return the lines of the page."""
    groups: dict[tuple[str, str], list[Decoded]] = {}
    for one in decoded():
        groups.setdefault((one.source, one.part), []).append(one)
    lines = [
        "Tokens/s of decoding; torchao and TinyChat gave three constants of `egobench/predict/inference.py`, AutoAWQ",
        "judges. Its prefill, which gave the share of 4-bit products, is slower than predicted for short prompts.",
        "",
        "| rows | part | n | median of abs. error | bias | worst |",
        "|---|---|---|---|---|---|",
    ]
    for (source, part), rows in groups.items():
        worst = max(rows, key=lambda one: abs(one.error))
        errors = [one.error for one in rows]
        lines.append(
            f"| {source} | {part} | {len(rows)} | {statistics.median(map(abs, errors)):.1%} "
            f"| {statistics.median(errors):+.1%} | {worst.error:+.0%} {worst.name} |"
        )
    return lines
