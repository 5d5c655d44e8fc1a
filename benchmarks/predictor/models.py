"""Shapes of the models that published rows were measured with, and the GPUs that have no datasheet row in egobench.

Each line is the `config.json` of the checkpoint that it names, from memory of the public file; parameter totals were
checked against the `params_B` that the rows state. InternVL3 comes from egobench/spec/dims.py.
"""

from __future__ import annotations

from typing import Final

from egobench.hardware import GPUS, Gpu
from egobench.predict.models import shape_of_dims
from egobench.predict.shapes import LlmShape, ModelShape, TowerShape, text_only
from egobench.spec.dims import NAMED


def _llm(
    hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int, *,
    is_tied: bool = False, is_gated: bool = True, head_dim: int = 0, has_qk_norm: bool = False,
) -> ModelShape:  # fmt: skip
    head_dim = head_dim or hidden // heads
    shape = LlmShape(hidden, layers, heads, kv_heads, head_dim, ffn, vocab, is_tied, is_gated, has_qk_norm)
    return text_only(shape)


def _mpt(hidden: int, layers: int, heads: int) -> ModelShape:
    return _llm(hidden, layers, heads, heads, 4 * hidden, 50368, is_tied=True, is_gated=False)


def _llava(llm: ModelShape) -> ModelShape:
    return ModelShape(TowerShape(1024, 24, 16, 4096, 336, 14, 3), llm.llm, 1.0)


LLAMA_2_7B: Final = _llm(4096, 32, 32, 32, 11008, 32000)
LLAMA_2_13B: Final = _llm(5120, 40, 40, 40, 13824, 32000)
LLAMA_2_70B: Final = _llm(8192, 80, 64, 8, 28672, 32000)
LLAMA_3_8B: Final = _llm(4096, 32, 32, 8, 14336, 128256)
LLAMA_3_70B: Final = _llm(8192, 80, 64, 8, 28672, 128256)
MISTRAL_7B: Final = _llm(4096, 32, 32, 8, 14336, 32000)
QWEN_14B: Final = _llm(5120, 40, 40, 40, 13696, 152064)
QWEN_72B: Final = _llm(8192, 80, 64, 64, 24576, 152064)
QWEN_7B: Final = _llm(4096, 32, 32, 32, 11008, 151936)
QWEN2_7B: Final = _llm(3584, 28, 28, 4, 18944, 152064)
YI_34B: Final = _llm(7168, 60, 56, 8, 20480, 64000)

MODELS: Final[dict[str, ModelShape]] = {
    "gpt_bigcode-santacoder": _llm(2048, 24, 16, 1, 8192, 49280, is_tied=True, is_gated=False),
    "Mistral-7B-v0.1": MISTRAL_7B,
    "Mistral-7B-v0.2": MISTRAL_7B,
    "Mistral-7B-v0.1-GPTQ": MISTRAL_7B,
    "openbuddy-zephyr-7b-chat": MISTRAL_7B,
    "Llama-2-70b-hf": LLAMA_2_70B,
    "Llama-2-70B-GPTQ": LLAMA_2_70B,
    "Llama-2-70B": LLAMA_2_70B,
    "Llama2-70B": LLAMA_2_70B,
    "Llama2-70b": LLAMA_2_70B,
    "Nous-Hermes-Llama2-70B-GPTQ": LLAMA_2_70B,
    "Llama2-13B": LLAMA_2_13B,
    "Llama2-13b": LLAMA_2_13B,
    "Llama 2 13 B": LLAMA_2_13B,
    "Llama2-7b": LLAMA_2_7B,
    "Llama-2-7B": LLAMA_2_7B,
    "Llama 2 7 B": LLAMA_2_7B,
    "Llama2-34b": _llm(8192, 48, 64, 8, 22016, 32000),
    "Llama3-8B": LLAMA_3_8B,
    "Llama3.1-8B": LLAMA_3_8B,
    "Llama3-70B": LLAMA_3_70B,
    "Llama3.1-70B": LLAMA_3_70B,
    "Llama3.1-405B": _llm(16384, 126, 128, 8, 53248, 128256),
    "Llama3.2-3B": _llm(3072, 28, 24, 8, 8192, 128256, is_tied=True),
    "MPT-125m": _mpt(768, 12, 12),
    "MPT-350m": _mpt(1024, 24, 16),
    "MPT-760m": _mpt(1536, 24, 12),
    "MPT-1b": _mpt(2048, 24, 16),
    "MPT-3b": _mpt(2560, 32, 20),
    "MPT-7b": _mpt(4096, 32, 32),
    "MPT-13b": _mpt(5120, 40, 40),
    "MPT-30b": _mpt(7168, 48, 56),
    "MPT-70b": _mpt(8192, 80, 64),
    "qwen-1_8b-chat": _llm(2048, 24, 16, 16, 5504, 151936),
    "qwen-7b-chat": QWEN_7B,
    "qwen-14b-chat": QWEN_14B,
    "qwen-14b-chat (2*A100)": QWEN_14B,
    "qwen-72b-chat": QWEN_72B,
    "qwen-72b-chat (2*A100)": QWEN_72B,
    "chatglm3-6b": _llm(4096, 28, 32, 2, 13696, 65024),
    "yi-6b-chat": _llm(4096, 32, 32, 4, 11008, 64000),
    "yi-34b-chat": YI_34B,
    "Yi-34B": YI_34B,
    "baichuan2-7b-chat": _llm(4096, 32, 32, 32, 11008, 125696),
    "baichuan2-13b-chat": _llm(5120, 40, 40, 40, 13696, 125696),
    "phi-1.5 1.3 B": _llm(2048, 24, 32, 32, 8192, 51200, is_gated=False),
    "StableLM Alpha 3 B": _llm(4096, 16, 32, 32, 16384, 50688, is_gated=False),
    "Falcon 40 B": _llm(8192, 60, 128, 8, 32768, 65024, is_tied=True, is_gated=False),
    "Qwen2-7B": QWEN2_7B,
    "Qwen3-0.6B": _llm(1024, 28, 16, 8, 3072, 151936, is_tied=True, head_dim=128, has_qk_norm=True),
    "Qwen3-4B": _llm(2560, 36, 32, 8, 9728, 151936, is_tied=True, head_dim=128, has_qk_norm=True),
    "Qwen3-8B": _llm(4096, 36, 32, 8, 12288, 151936, head_dim=128, has_qk_norm=True),
    "Gemma-7B": _llm(3072, 28, 16, 16, 24576, 256000, is_tied=True, head_dim=256),
    "Phi-3-mini": _llm(3072, 32, 32, 32, 8192, 32064),
    **{
        f"GPT3-{size}": _llm(hidden, layers, heads, heads, 4 * hidden, 50264, is_tied=True, is_gated=False)
        for size, hidden, layers, heads in (
            ("125M", 768, 12, 12), ("355M", 1024, 24, 16), ("760M", 1536, 24, 16), ("1.3B", 2048, 24, 16),
            ("2.7B", 2560, 32, 20),
        )
    },
    # Its tower is OpenCLIP's bigG; 256 learned queries read it, which two matrices stand for here.
    "Qwen-VL": ModelShape(TowerShape(1664, 48, 16, 8192, 448, 14, 3), QWEN_7B.llm, 0.5),
    "LLaVA-1.5-7B": _llava(LLAMA_2_7B),
    "LLaVA-1.5-13B": _llava(LLAMA_2_13B),
    **{
        f"InternVL3-{size}": shape_of_dims(NAMED[f"internvl3-{size.lower()}"])
        for size in ("1B", "2B", "8B", "14B", "38B")
    },
}  # fmt: skip
"""Name in the rows -> shape."""


def _gpu(name: str, memory_gb: float, bandwidth_tb_per_s: float, bf16: float, link: str, link_gb: float) -> Gpu:
    return Gpu(
        name, round(memory_gb * 1e9), bandwidth_tb_per_s * 1e12, {"bf16": bf16 * 1e12, "fp16": bf16 * 1e12}, (8, 9),
        link, link_gb * 1e9, (), "vendor's datasheet, from memory",
    )  # fmt: skip


_H100_96 = Gpu(
    "H100-96GB HBM2e", 96 * 10**9, 2.4e12, {"bf16": 989e12, "fp16": 989e12, "fp8": 1979e12}, (9, 0), "NVLink4", 450e9,
    (), "torchtitan's benchmarks/: 'H100 with 96 GB of HBM2e', 500 W",
)  # fmt: skip

PUBLISHED_GPUS: Final[dict[str, Gpu]] = {
    "A100": GPUS["A100-80GB SXM"],
    "A100-80GB": GPUS["A100-80GB SXM"],
    "A100-80GB-PCIe": GPUS["A100-80GB PCIe"],
    "a100_80gb": GPUS["A100-80GB SXM"],
    "A100-40GB": GPUS["A100-40GB SXM"],
    "A100-40GB-SXM": GPUS["A100-40GB SXM"],
    "a100_40gb": GPUS["A100-40GB SXM"],
    "h100_80gb": GPUS["H100-80GB SXM"],
    "H100-80GB-SXM": GPUS["H100-80GB SXM"],
    "H100-96GB-HBM2e-500W": _H100_96,
    "H100-95GB-HBM2e": _H100_96,
    "H200-141GB": GPUS["H200-141GB SXM"],
    "RTX4090": GPUS["RTX4090-24GB"],
    "RTX3090-280W": GPUS["RTX3090-24GB"],
    "A6000": GPUS["RTX A6000-48GB"],
    "H20-96GB": Gpu(
        "H20-96GB",
        96 * 10**9,
        4.0e12,
        {"bf16": 148e12, "fp16": 148e12},
        (9, 0),
        "NVLink4",
        450e9,
        (),
        "vendor's datasheet, from memory",
    ),
    "B200": Gpu(
        "B200-180GB",
        180 * 10**9,
        8.0e12,
        {"bf16": 2250e12, "fp16": 2250e12},
        (10, 0),
        "NVLink5",
        900e9,
        (),
        "vendor's datasheet, from memory",
    ),
    "L40S-48GB": GPUS["L40S-48GB"],
    "L40-48GB": _gpu("L40-48GB", 48, 0.864, 181, "PCIe4", 31),
    "A5000-24GB": _gpu("RTX A5000-24GB", 24, 0.768, 111, "PCIe4", 31),
    "RTX6000Ada-48GB": _gpu("RTX 6000 Ada-48GB", 48, 0.96, 364, "PCIe4", 31),
}
"""Name in the rows -> datasheet."""
