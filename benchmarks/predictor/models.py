"""Shapes of the models that published rows were measured with, by name.

Each line is the `config.json` of the checkpoint that it names, from memory of the public file; parameter totals were
checked against the `params_B` that the rows state. InternVL3 comes from egobench/spec/dims.py.
"""

from __future__ import annotations

import re
from typing import Final

from benchmarks.predictor.columns import Unmapped
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


def _gpt(hidden: int, layers: int, heads: int, vocab: int) -> ModelShape:
    """Return one of GPT-2's kind: a tied head, every head its own keys, two matrices of a feed-forward network."""
    return _llm(hidden, layers, heads, heads, 4 * hidden, vocab, is_tied=True, is_gated=False)


def _llava(llm: ModelShape) -> ModelShape:
    return ModelShape(TowerShape(1024, 24, 16, 4096, 336, 14, 3), llm.llm, 1.0)


def _internvl(tower: TowerShape, llm: ModelShape) -> ModelShape:
    return ModelShape(tower, llm.llm, 0.5)


_SMALL_TOWER: Final = shape_of_dims(NAMED["internvl3-8b"]).tower
_LARGE_TOWER: Final = shape_of_dims(NAMED["internvl3-38b"]).tower
# Two frames of a patch are joined; the later tower's three matrices stand here as two of as many numbers.
_QWEN_2_TOWER: Final = TowerShape(1280, 32, 16, 5120, 448, 14, 6)
_QWEN_25_TOWER: Final = TowerShape(1280, 32, 16, 5130, 448, 14, 6)

_QWEN: Final = {
    "1.8b": _llm(2048, 24, 16, 16, 5504, 151936),
    "7b": _llm(4096, 32, 32, 32, 11008, 151936),
    "14b": _llm(5120, 40, 40, 40, 13696, 152064),
    "72b": _llm(8192, 80, 64, 64, 24576, 152064),
}
_QWEN_2: Final = {
    "0.5b": _llm(896, 24, 14, 2, 4864, 151936, is_tied=True),
    "1.5b": _llm(1536, 28, 12, 2, 8960, 151936, is_tied=True),
    "7b": _llm(3584, 28, 28, 4, 18944, 152064),
    "72b": _llm(8192, 80, 64, 8, 29568, 152064),
}
_QWEN_25: Final = {
    **_QWEN_2,
    "3b": _llm(2048, 36, 16, 2, 11008, 151936, is_tied=True),
    "14b": _llm(5120, 48, 40, 8, 13824, 152064),
    "32b": _llm(5120, 64, 40, 8, 27648, 152064),
}
_LLAMA_2: Final = {
    "7b": _llm(4096, 32, 32, 32, 11008, 32000),
    "13b": _llm(5120, 40, 40, 40, 13824, 32000),
    "34b": _llm(8192, 48, 64, 8, 22016, 32000),
    "70b": _llm(8192, 80, 64, 8, 28672, 32000),
}
_LLAMA_3: Final = {
    "1b": _llm(2048, 16, 32, 8, 8192, 128256, is_tied=True, head_dim=64),
    "3b": _llm(3072, 28, 24, 8, 8192, 128256, is_tied=True),
    "8b": _llm(4096, 32, 32, 8, 14336, 128256),
    "70b": _llm(8192, 80, 64, 8, 28672, 128256),
    "405b": _llm(16384, 126, 128, 8, 53248, 128256),
}
_INTERNLM_2: Final = {
    "1.8b": _llm(2048, 24, 16, 8, 8192, 92544),
    "7b": _llm(4096, 32, 32, 8, 14336, 92544),
    "20b": _llm(6144, 48, 48, 8, 16384, 92544),
}
_YI: Final = {
    "6b": _llm(4096, 32, 32, 4, 11008, 64000),
    "9b": _llm(4096, 48, 32, 4, 11008, 64000),
    "34b": _llm(7168, 60, 56, 8, 20480, 64000),
}
_OPT: Final = {
    size: _gpt(hidden, layers, heads, 50272)
    for size, hidden, layers, heads in (
        ("125m", 768, 12, 12), ("1.3b", 2048, 24, 32), ("2.7b", 2560, 32, 32), ("6.7b", 4096, 32, 32),
        ("13b", 5120, 40, 40), ("30b", 7168, 48, 56), ("66b", 9216, 64, 72),
    )
}  # fmt: skip
_MISTRAL: Final = _llm(4096, 32, 32, 8, 14336, 32000)
_PHI_3_MINI: Final = _llm(3072, 32, 32, 32, 8192, 32064)

MODELS: Final[dict[str, ModelShape]] = {
    **{f"llama-2-{size}": shape for size, shape in _LLAMA_2.items()},
    **{f"{name}-{size}": _LLAMA_2[size] for name in ("llama", "vicuna") for size in ("7b", "13b")},
    "codellama-34b": _LLAMA_2["34b"],
    "llama-30b": _llm(6656, 60, 52, 52, 17920, 32000),
    "llama-65b": _llm(8192, 80, 64, 64, 22016, 32000),
    **{f"llama-{version}-{size}": shape for version in ("3", "3.1", "3.2", "3.3") for size, shape in _LLAMA_3.items()},
    "tinyllama-1.1b": _llm(2048, 22, 32, 4, 5632, 32000),
    "mistral-7b": _MISTRAL,
    "openbuddy-zephyr-7b": _MISTRAL,
    "zephyr-7b": _MISTRAL,
    "mistral-nemo-12b": _llm(5120, 40, 32, 8, 14336, 131072, head_dim=128),
    "mistral-small-24b": _llm(5120, 40, 32, 8, 32768, 131072, head_dim=128),
    **{f"qwen-{size}": shape for size, shape in _QWEN.items()},
    **{f"qwen-1.5-{size}": shape for size, shape in _QWEN.items()},
    "qwen-1.5-0.5b": _llm(1024, 24, 16, 16, 2816, 151936, is_tied=True),
    "qwen-1.5-4b": _llm(2560, 40, 20, 20, 6912, 151936),
    "qwen-1.5-32b": _llm(5120, 64, 40, 8, 27392, 152064),
    **{f"qwen-2-{size}": shape for size, shape in _QWEN_2.items()},
    **{f"qwen-2.5-{name}{size}": shape for name in ("", "coder-") for size, shape in _QWEN_25.items()},
    **{
        f"qwen-3-{size}": _llm(*dims, 151936, is_tied=is_tied, head_dim=128, has_qk_norm=True)
        for size, dims, is_tied in (
            ("0.6b", (1024, 28, 16, 8, 3072), True), ("1.7b", (2048, 28, 16, 8, 6144), True),
            ("4b", (2560, 36, 32, 8, 9728), True), ("8b", (4096, 36, 32, 8, 12288), False),
            ("14b", (5120, 40, 40, 8, 17408), False), ("32b", (5120, 64, 64, 8, 25600), False),
        )
    },
    **{f"internlm-{v}-{size}": shape for v in ("2", "2.5") for size, shape in _INTERNLM_2.items()},
    **{f"yi-{size}": shape for size, shape in _YI.items()},
    "deepseek-llm-7b": _llm(4096, 30, 32, 32, 11008, 102400),
    "deepseek-coder-1.3b": _llm(2048, 24, 16, 16, 5504, 32256),
    "smollm-2-1.7b": _llm(2048, 24, 32, 32, 8192, 49152, is_tied=True),
    "smollm-2-360m": _llm(960, 32, 15, 5, 2560, 49152, is_tied=True),
    "smollm-2-135m": _llm(576, 30, 9, 3, 1536, 49152, is_tied=True),
    "internlm-7b": _llm(4096, 32, 32, 32, 11008, 103168),
    "internlm-20b": _llm(5120, 60, 40, 40, 13824, 103168),
    "longchat-13b": _LLAMA_2["13b"],
    "chatglm-3-6b": _llm(4096, 28, 32, 2, 13696, 65024),
    "baichuan-2-7b": _llm(4096, 32, 32, 32, 11008, 125696),
    "baichuan-2-13b": _llm(5120, 40, 40, 40, 13696, 125696),
    "gemma-2b": _llm(2048, 18, 8, 1, 16384, 256000, is_tied=True, head_dim=256),
    "gemma-7b": _llm(3072, 28, 16, 16, 24576, 256000, is_tied=True, head_dim=256),
    "phi-1.5-1.3b": _llm(2048, 24, 32, 32, 8192, 51200, is_gated=False),
    "phi-2": _llm(2560, 32, 32, 32, 10240, 51200, is_gated=False),
    "phi-3-mini": _PHI_3_MINI,
    "phi-3.5-mini": _PHI_3_MINI,
    "phi-4": _llm(5120, 40, 40, 10, 17920, 100352),
    "gpt-bigcode-santacoder": _llm(2048, 24, 16, 1, 8192, 49280, is_tied=True, is_gated=False),
    "stablelm-alpha-3b": _llm(4096, 16, 32, 32, 16384, 50688, is_gated=False),
    "falcon-7b": _llm(4544, 32, 71, 1, 18176, 65024, is_tied=True, is_gated=False),
    "falcon-40b": _llm(8192, 60, 128, 8, 32768, 65024, is_tied=True, is_gated=False),
    "gpt-j-6b": _llm(4096, 28, 16, 16, 16384, 50400, is_gated=False),
    "gpt-neox-20b": _llm(6144, 44, 64, 64, 24576, 50432, is_gated=False),
    **{
        f"mpt-{size}": _gpt(hidden, layers, heads, 50368)
        for size, hidden, layers, heads in (
            ("125m", 768, 12, 12), ("350m", 1024, 24, 16), ("760m", 1536, 24, 12), ("1b", 2048, 24, 16),
            ("3b", 2560, 32, 20), ("7b", 4096, 32, 32), ("13b", 5120, 40, 40), ("30b", 7168, 48, 56),
            ("70b", 8192, 80, 64),
        )
    },
    **{
        f"gpt-{size}": _gpt(hidden, layers, heads, vocab)
        for size, hidden, layers, heads, vocab in (
            ("2", 768, 12, 12, 50257), ("2-124m", 768, 12, 12, 50257), ("2-medium", 1024, 24, 16, 50257),
            ("2-large", 1280, 36, 20, 50257),
            ("2-xl", 1600, 48, 25, 50257), ("3-125m", 768, 12, 12, 50264), ("3-355m", 1024, 24, 16, 50264),
            ("3-760m", 1536, 24, 16, 50264), ("3-1.3b", 2048, 24, 16, 50264), ("3-2.7b", 2560, 32, 20, 50264),
        )
    },
    **{f"opt-{size}": shape for size, shape in _OPT.items()},
    # EVA's g/14; 32 learned queries read it in a Q-Former of 188M, of which the projector here is a sixth.
    **{
        f"blip-2-opt-{size}": ModelShape(TowerShape(1408, 39, 16, 6144, 224, 14, 3), _OPT[size].llm, 8**-0.5)
        for size in ("2.7b", "6.7b")
    },
    # Its tower is OpenCLIP's bigG; 256 learned queries read it, which two matrices stand for here.
    "qwen-vl": ModelShape(TowerShape(1664, 48, 16, 8192, 448, 14, 3), _QWEN["7b"].llm, 0.5),
    "qwen-2-vl-2b": _internvl(_QWEN_2_TOWER, _QWEN_2["1.5b"]),
    "qwen-2-vl-7b": _internvl(_QWEN_2_TOWER, _QWEN_2["7b"]),
    "qwen-2-vl-72b": _internvl(_QWEN_2_TOWER, _QWEN_2["72b"]),
    "qwen-2.5-vl-3b": _internvl(_QWEN_25_TOWER, _QWEN_25["3b"]),
    "qwen-2.5-vl-7b": _internvl(_QWEN_25_TOWER, _QWEN_25["7b"]),
    "qwen-2.5-vl-32b": _internvl(_QWEN_25_TOWER, _QWEN_25["32b"]),
    "qwen-2.5-vl-72b": _internvl(_QWEN_25_TOWER, _QWEN_25["72b"]),
    "llava-1.5-7b": _llava(_LLAMA_2["7b"]),
    "llava-1.5-13b": _llava(_LLAMA_2["13b"]),
    # 256 patches of SigLIP-B/16 and no class token; with 224 pixels there are 196.
    "nanovlm-222m": _internvl(
        TowerShape(768, 12, 12, 3072, 256, 16, 3), _llm(576, 30, 9, 3, 1536, 49152, is_tied=True)
    ),
    "internvl-1.2-plus": _internvl(_LARGE_TOWER, _YI["34b"]),
    "internvl-1.5": _internvl(_LARGE_TOWER, _INTERNLM_2["20b"]),
    "internvl-2-1b": _internvl(_SMALL_TOWER, _QWEN_2["0.5b"]),
    "internvl-2-2b": _internvl(_SMALL_TOWER, _INTERNLM_2["1.8b"]),
    "internvl-2-4b": _internvl(_SMALL_TOWER, _PHI_3_MINI),
    "internvl-2-8b": _internvl(_SMALL_TOWER, _INTERNLM_2["7b"]),
    "internvl-2-26b": _internvl(_LARGE_TOWER, _INTERNLM_2["20b"]),
    "internvl-2-40b": _internvl(_LARGE_TOWER, _YI["34b"]),
    "internvl-2-76b": _internvl(_LARGE_TOWER, _LLAMA_3["70b"]),
    "internvl-2.5-1b": _internvl(_SMALL_TOWER, _QWEN_2["0.5b"]),
    "internvl-2.5-2b": _internvl(_SMALL_TOWER, _INTERNLM_2["1.8b"]),
    "internvl-2.5-4b": _internvl(_SMALL_TOWER, _QWEN_25["3b"]),
    "internvl-2.5-8b": _internvl(_SMALL_TOWER, _INTERNLM_2["7b"]),
    "internvl-2.5-26b": _internvl(_LARGE_TOWER, _INTERNLM_2["20b"]),
    "internvl-2.5-38b": _internvl(_LARGE_TOWER, _QWEN_25["32b"]),
    "internvl-2.5-78b": _internvl(_LARGE_TOWER, _QWEN_25["72b"]),
    **{
        f"internvl-3-{size}": shape_of_dims(NAMED[f"internvl3-{size}"])
        for size in ("1b", "2b", "8b", "14b", "38b")
    },
    "internvl-3-9b": _internvl(_SMALL_TOWER, _llm(4096, 48, 32, 2, 10240, 128512)),
    "internvl-3-78b": _internvl(_LARGE_TOWER, _QWEN_25["72b"]),
}  # fmt: skip
"""Name, as `plain_name` makes it -> shape."""
_SAYS_NOTHING: Final = frozenset(
    ("hf", "chat", "instruct", "base", "it", "meta", "v", "gptq", "awq", "bnb", "4bit", "int", "nf", "fp8", "bf16")
)
_IS_MIXTURE: Final = re.compile(r"\d+x\d+b|\d+b-a\d+b")


def plain_name(name: str) -> str:
    """Return a model's name in the one form that `MODELS` has: `Llama 2 7 B` and `org/Llama-2-7b-hf` are one."""
    text = re.sub(r"\(.*?\)", "", name.lower()).strip().rsplit("/", 1)[-1]  # (2*A100), (26B)
    text = re.sub(r"(?<=\d)_(?=\d)", ".", text)
    text = re.sub(r"[\s_]+", "-", text.strip())
    text = re.sub(r"(?<=[a-z])(?=\d)", "-", text)
    text = re.sub(r"(?<=\d)-(?=[bm]\b)", "", text)
    text = "-".join(word for word in text.split("-") if word and word not in _SAYS_NOTHING)
    # Versions, bits and lengths after the size change no shape.
    return re.sub(r"(\d[bm]|mini)(-\d[\d.]*k?)+$", r"\1", text)


def shape_named(name: str) -> ModelShape:
    """Return the shape of a model that a table names.

    Raises:
        Unmapped: it has none here.
    """
    if _IS_MIXTURE.search(name.lower()):
        raise Unmapped("a mixture of experts")
    plain = plain_name(name)
    # Who trained it on what comes first in a name: nous-hermes-llama-2-70b.
    known = next((key for key in sorted(MODELS, key=len, reverse=True) if f"-{plain}".endswith(f"-{key}")), None)
    if known is None:
        raise Unmapped(f"the model's shapes are not known: {name}")
    return MODELS[known]
