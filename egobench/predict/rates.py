"""Every free number of the time prediction, with its unit and its source, and how training loops differ in speed.

What a program does (bytes that an operation reads and writes, copies in a ring) is counted in the formulas; here is how
fast hardware does it, and how wasteful a loop's operations are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True)
class Rates:
    """What a system reaches; the few numbers that a calibration may move."""

    matmul_scale: float = 1.0
    """On the table of fractions below."""
    attention_scale: float = 1.0
    """On the fractions of the kernels."""
    bandwidth_fraction: float = 0.64
    """Of a datasheet's memory bandwidth, by elementwise kernels and all that lies between them. Fitted on Mosaic, fms
    and answer.ai; Calculon's seeds for the kernels alone are 0.75 to 0.9."""
    op_s: float = 17e-6
    """Seconds that Python and torch take to launch one operation. Source: transformers decodes a layer of about 50
    operations in 0.84 to 0.90 ms, whatever its size (Qwen2.5's published speeds)."""
    module_ops: float = 16.0
    """Operations' worth of host time that DeepSpeed's stage 3 takes for every module in every pass (fetch, wait,
    release), with one GPU too. Source: benchmarks/gather_hooks.py, 14 to 18 or 0.3 ms."""
    unit_ops: float = 35.0
    """The same of FSDP 2, for every unit in the forward and in the backward pass. Source: the same, 27 to 38."""
    link_fraction: float = 0.75
    """Of a link's nominal rate, by large collectives over NVLink. Source: nccl-tests on A100, 230 of 300 GB/s."""
    pcie_fraction: float = 0.35
    """The same over PCIe, which neighbours share. Source: nccl-tests on PCIe 4.0 servers, 10 to 16 of 31 GB/s."""
    bounced_fraction: float = 0.30
    """The same where GPUs have no peer access, and everything goes through host memory."""
    network_fraction: float = 0.90
    """Of all network cards of a node together. Source: Calculon's seeds, and 92 of about 100 GB/s measured."""
    latency_s: float = 20e-6
    """Of a collective in a node. Source: nccl-tests."""
    ring_s: float = 3e-6
    """More for every further GPU of a gather or a reduce-scatter, which NCCL passes on in a ring. Fitted on Mosaic."""
    hop_s: float = 20e-6
    """More for every doubling of the nodes of an all-reduce, a tree. Source: 68 microseconds for a small one over 4."""
    unhidden_share: float = 0.7
    """Of a hidden collective's time that the computation loses all the same: it takes multiprocessors and bandwidth,
    and waits for memory to be free. Fitted on Mosaic and fms; Calculon's seeds take 0.15 for multiprocessors alone."""
    unit_s: float = 0.3e-3
    """Of a collective of a few numbers (one adapter) that torch's first FSDP wraps by itself. Fitted on fms."""
    jitter_share: float = 0.007
    """More time for every doubling of the nodes, where all wait for the slowest. Fitted on Mosaic."""
    host_bytes_per_s: float = 60e9
    """Of host memory, by an optimizer that runs on the CPU. Source: two channels' worth of a server socket."""
    host_link_bytes_per_s: float = 20e9
    """Between host memory and one GPU. Source: PCIe 4.0 x16, 31 nominal."""
    unpack_flops: float = 150.0
    """Scalar operations that turn a 4-bit number into a 16-bit one, at the fp32 peak, in bitsandbytes and GPTQ. Fitted
    on swift's 4-bit rows: 0.18 to 0.25 s of a micro-step of a 7B model on A100, whatever its batch."""
    image_s: float = 0.005
    """Seconds of one thread to read and prepare a tile of 448 pixels, others by their area; hidden behind the step
    while it lasts. Source: a JPEG decoded and resized by Pillow, from memory; a generator's pictures cost less."""
    num_threads: int = 4
    """Threads that prepare data, per rank (egobench/train/feed.py)."""


DEFAULT: Final = Rates()

DEFAULT_FRACTION: Final = 0.80
"""Of a peak, by large matrix products, where nobody measured it: a GPU that power does not hold back."""
MATMUL_FRACTIONS: Final[dict[str, float]] = {
    "A100-40GB SXM": 0.775,
    "A100-80GB SXM": 0.775,
    "A100-80GB PCIe": 0.70,
    "H100-80GB SXM": 0.65,
    "H100-80GB PCIe": 0.62,
    "H100-96GB HBM2e": 0.58,
    "H200-141GB SXM": 0.65,
    "L40S-48GB": 0.62,
    "L4-24GB": 0.50,
    "T4-16GB": 0.40,
    "A10-24GB": 0.60,
    "RTX4090-24GB": 0.95,
    "RTX3090-24GB": 0.90,
    "L40-48GB": 0.95,
    "RTX 6000 Ada-48GB": 0.55,
}
"""GPU -> of its bf16 peak, sustained. A100 and H100 are fitted on Mosaic and fms, below the best shape that was ever
seen (0.869 and 0.803, stas00/ml-engineering) because shapes vary and power is limited; the PCIe models and the 500 W
part follow by the cube root of their power; L4, T4, A10 are limited by 70 to 150 W."""
ADA: Final = 1.9
GDDR: Final = 1.06
BANDWIDTHS: Final[dict[str, float]] = {
    **dict.fromkeys(("RTX4090-24GB", "L40S-48GB", "L40-48GB", "RTX 6000 Ada-48GB", "L4-24GB"), ADA),
    **dict.fromkeys(("RTX3090-24GB", "RTX A6000-48GB", "RTX A5000-24GB", "A10-24GB", "T4-16GB"), GDDR),
}
"""GPU -> its fraction of bandwidth over that of HBM: GDDR reaches 0.92 where HBM2e reaches 0.85, and the second-level
caches of Ada's GPUs (48 to 96 MB) hold most of what one operation writes for the next to read. Fitted on answer.ai."""
FP8_FRACTION: Final = 0.85
"""Of the bf16 fraction, by FP8 products: 71 % of peak at best, against 80 %. Source: stas00/ml-engineering."""

KERNELS: Final[dict[str, tuple[float, float, bool]]] = {
    "sdpa": (0.55, 0.33, True),
    "sdpa_flash": (0.55, 0.33, True),
    "flash_attention_2": (0.55, 0.33, True),
    "flash_attention_3": (0.60, 0.60, True),
    "sdpa_cudnn": (0.60, 0.55, True),
    "sdpa_efficient": (0.40, 0.25, True),
    "masked": (0.40, 0.25, False),
    "flex": (0.50, 0.35, True),
    "triton": (0.317, 0.178, True),
    "eager": (0.60, 0.50, False),
}
"""Attention kernel -> of the bf16 peak, forward and backward together, before Hopper and from Hopper on; and whether it
skips what a causal mask hides. `masked` is what `sdpa` falls to where a loop passes a mask (ours never does).
Source: the FlashAttention-2 and -3 papers' figures for 128-wide heads; `triton` is that of llm-foundry, fitted on
Mosaic's long sequences."""


@dataclass(frozen=True)
class Loop:
    """How many bytes a training loop's elementwise operations move, and how many operations it launches.

    Bytes are of the forward pass, per number of a 16-bit tensor; a backward pass moves twice as many.
    """

    block_format: str = ""
    """Format of the products with the LLM's matrices, where it is not the precision's: around 4-bit matrices without
    autocast all else is in 32 bits."""
    norm_bytes: float = 36.0
    """Of one norm. RMSNorm in eager mode: to fp32, its square, mean, product, back to 16 bits, times the weight."""
    tower_norm_bytes: float = 6.0
    """Of a LayerNorm, which is one kernel."""
    residual_bytes: float = 6.0
    """Of one addition: two reads and a write."""
    rope_bytes: float = 22.0
    """Of queries and keys that are rotated in five operations; 0 where positions are a bias."""
    layout_bytes: float = 4.0
    """Of queries, keys and values that are transposed or copied."""
    gated_bytes: float = 10.0
    """Of the feed-forward width: silu, and the product."""
    plain_bytes: float = 4.0
    """The same without a gate: GELU."""
    logit_bytes: float = 46.0
    """Of a logit, forward and backward: 16 bits, fp32 copy, log-softmax, their gradients."""
    adapter_in_bytes: float = 19.0
    """Of the input of an adapted matrix: cast to fp32, dropout, and its read by the product."""
    adapter_out_bytes: float = 12.0
    """Of its output: written, scaled, added."""
    num_ops: float = 45.0
    """Operations of an LLM block's forward pass."""
    num_tower_ops: float = 25.0
    num_adapter_ops: float = 8.0
    """More for every adapted matrix."""
    kernel: str | None = None
    """Attention kernel, where it is not that of the axis."""
    joins_qkv: bool = False
    """Query, key and value are one matrix, with one adapter."""
    selective_share: float = 0.0
    """Of the products, that `selective` recomputes nevertheless."""
    reduces_fp32: bool = True
    """Gradients of 16-bit training are summed in fp32."""
    adapter_units: float = 0.0
    """Units that a sharded model has more for every adapted matrix: PEFT's wrapping policy makes two of an adapter."""
    compiles_loss: bool = False
    """A compiled model's loss is compiled too."""
    gather_copies: float = 4.0
    """Bytes that FSDP moves in its own memory for every number that it gathers or reduces."""


_EAGER: Final = Loop()
_FUSED: Final = replace(_EAGER, norm_bytes=8.0, rope_bytes=8.0, logit_bytes=20.0, adapter_in_bytes=8.0, num_ops=30.0)
# Its `selective op` recomputes every other product.
_TITAN: Final = replace(
    _EAGER, compiles_loss=True, selective_share=0.5, rope_bytes=20.0, layout_bytes=2.0, num_ops=35.0
)
_KBIT: Final = replace(_EAGER, norm_bytes=40.0, residual_bytes=12.0, adapter_in_bytes=25.0)

_FMS: Final = replace(_EAGER, adapter_units=2.0)
_FMS_FUSED: Final = replace(_FUSED, adapter_units=2.0)
_FMS_QUANTISED: Final = replace(_FMS, adapter_in_bytes=8.0)
# LayerNorm, positions in the embedding, and dropout in front of both additions.
_BIGCODE: Final = replace(_FMS, norm_bytes=6.0, residual_bytes=11.0, rope_bytes=0.0, layout_bytes=8.0)
_JOINED: Final = replace(_EAGER, joins_qkv=True)

LOOPS: Final[dict[str, Loop]] = {
    # Adapters without dropout; a third of what forward and backward pass together read and write of a 16-bit tensor.
    "egobench": replace(_EAGER, adapter_in_bytes=4.0, adapter_out_bytes=8.0),
    "hf": _EAGER,
    "hf_kbit": _KBIT,
    "hf_loop_kbit": replace(_KBIT, block_format="fp16"),
    "fms": _FMS,
    "fms_foak": _FMS_FUSED,
    "fms_bnb": _FMS_QUANTISED,
    "fms_bnb_foak": _FMS_FUSED,
    "fms_bnb_kbit": replace(_KBIT, adapter_units=2.0),
    "fms_gptq": _FMS_QUANTISED,
    "fms_gptq_foak": _FMS_FUSED,
    "fms_bigcode": _BIGCODE,
    "fms_bigcode_foak": _BIGCODE,
    "fms_bigcode_bnb": _BIGCODE,
    "fms_bigcode_bnb_foak": _BIGCODE,
    "llm_foundry": replace(
        _EAGER, norm_bytes=6.0, rope_bytes=0.0, num_ops=25.0, kernel="triton", logit_bytes=30.0, reduces_fp32=False
    ),
    "torchtitan": _TITAN,
    "torchtitan_2026": _TITAN,
    "torchtune": _TITAN,
    "torchtune_first": _TITAN,
    "swift_qwen": _JOINED,
    "swift_gptq_qwen": _JOINED,
    "swift_bnb_qwen": _JOINED,
    "qwen": replace(_JOINED, logit_bytes=24.0),
    "qwen_gptq": replace(_JOINED, logit_bytes=24.0),
    "universal_trainer": replace(_EAGER, logit_bytes=24.0, kernel="masked"),
    "universal_trainer_joined": replace(_JOINED, logit_bytes=24.0, kernel="masked"),
    "hf_liger": replace(_FUSED, gated_bytes=6.0, logit_bytes=24.0),
    # It replaces norms and rotations by kernels, not the loss.
    "xtuner": replace(_EAGER, norm_bytes=8.0, rope_bytes=8.0, num_ops=30.0),
    "fsdp_qlora": replace(_EAGER, adapter_in_bytes=8.0, adapter_units=2.0),
}
"""Name of a loop (`constants.SOFTWARE`) -> its speed; those that are missing are transformers in eager mode."""

COMPILED: Final[dict[str, float]] = {
    "norm_bytes": 8.0, "residual_bytes": 3.0, "rope_bytes": 6.0, "layout_bytes": 0.0, "gated_bytes": 6.0,
    "plain_bytes": 2.0, "logit_bytes": 24.0, "num_ops": 15.0, "num_tower_ops": 10.0,
}  # fmt: skip
"""What torch.compile leaves: one fused pass where eager mode has several."""


def loop_of(software: str, compile: str) -> Loop:
    """Return the speed of a loop, compiled or not."""
    found = LOOPS.get(software, _EAGER)
    return found if compile == "off" else _COMPILED[found]


_COMPILED: Final = {
    loop: replace(
        loop,
        **{
            name: min(value, getattr(loop, name))
            for name, value in COMPILED.items()
            if loop.compiles_loss or name != "logit_bytes"
        },
    )
    for loop in {*LOOPS.values(), _EAGER}
}
