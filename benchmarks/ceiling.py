"""What this device can do at best: bf16 products of plain and of InternVL3's shapes, attention, and a copy.

    python benchmarks/ceiling.py [--json FILE]

A utilisation is held against the datasheet; these numbers say how much of the datasheet a plain product reaches on the
very machine, on random data (zeros are faster), and so how far training still is from what the device gives anybody.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

PRODUCTS = {
    "plain 8192^3": (8192, 8192, 8192),
    "2B LLM, mlp up": (9600, 1536, 8960),
    "2B LLM, mlp down": (9600, 8960, 1536),
    "8B LLM, mlp up": (4800, 3584, 18944),
    "tower, mlp up": (32800, 1024, 4096),
}
"""Name -> (rows, inner, columns): 32 samples of 300 tokens (8B: 16), 32 pictures of 1025 patches."""
ATTENTIONS = {
    "tower": (32, 16, 1025, 64, False),
    "2B LLM": (32, 12, 300, 128, True),
    "8B LLM": (16, 28, 300, 128, True),
}
"""Name -> (samples, heads, width, head size, is causal)."""


def seconds_of(body: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the mean time of a call after three for warm-up."""
    for _ in range(3):
        body()
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(repeats):
            body()
        return (time.perf_counter() - began) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        body()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def product_flops_per_s(shape: tuple[int, int, int], device: torch.device, repeats: int) -> float:
    rows, inner, columns = shape
    a = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    b = torch.randn(columns, inner, device=device, dtype=torch.bfloat16)
    return 2 * rows * inner * columns / seconds_of(lambda: a @ b.t(), device, repeats)


def attention_flops_per_s(
    shape: tuple[int, int, int, int, bool], device: torch.device, repeats: int, backend: SDPBackend
) -> float | None:
    """Return the speed of a forward and a backward pass, whose products are 2 + 5; None: it cannot run here."""
    samples, heads, width, size, is_causal = shape
    query, key, value = (
        torch.randn(samples, heads, width, size, device=device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    slope = torch.randn_like(query)

    def body() -> None:
        with sdpa_kernel(backend):
            torch.autograd.backward(scaled_dot_product_attention(query, key, value, is_causal=is_causal), slope)

    flops = 7 * 2 * samples * heads * width * width * size * (0.5 if is_causal else 1)
    try:
        return flops / seconds_of(body, device, repeats)
    except RuntimeError:
        return None


def copy_bytes_per_s(device: torch.device, size: int, repeats: int) -> float:
    source = torch.empty(size, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * size / seconds_of(lambda: target.copy_(source), device, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write everything there")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    repeats, shrink = (20, 1) if on_gpu else (2, 16)  # a CPU only rehearses
    found: dict[str, float | None] = {}
    for name, (rows, inner, columns) in PRODUCTS.items():
        shape = (rows // shrink, inner // shrink, columns // shrink)
        found[f"product, {name}"] = product_flops_per_s(shape, device, repeats)
    for name, (samples, heads, width, size, is_causal) in ATTENTIONS.items():
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION) if on_gpu else (SDPBackend.MATH,):
            one = (max(1, samples // shrink), heads, width // shrink, size, is_causal)
            key = f"attention, {name}, {backend.name.lower()}"
            found[key] = attention_flops_per_s(one, device, repeats, backend)
    found["copy"] = copy_bytes_per_s(device, 2**33 if on_gpu else 2**24, repeats)
    for name, value in found.items():
        unit = "TB/s" if name == "copy" else "TFLOP/s"
        print(f"{name:<50} {'cannot run' if value is None else f'{value / 1e12:.2f} {unit}'}")
    if options.json:
        facts = {"device": torch.cuda.get_device_name() if on_gpu else "cpu", "torch": torch.__version__}
        options.json.write_text(json.dumps({"schema_version": 1, **facts, "per_s": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
