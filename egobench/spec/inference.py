"""How a model is measured when it answers: `inference:` of a workload or variant, and what each runtime can run."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from egobench.spec.strict import Strict

Runtime = Literal["torch", "torch_compiled", "onnxruntime", "openvino", "llama_cpp", "vllm", "tensorrt_llm"]
PLAIN_KINDS: Final = ("as_trained", "distilled")
"""Kinds whose weights are not quantized."""
_QUANTIZED_FOLDERS: Final = ("awq", "gptq", "int8", "int8_dynamic", "int4", "fp8", "fp8_static")
RUNTIME_KINDS: Final[dict[Runtime, tuple[str, ...]]] = {
    "torch": (*PLAIN_KINDS, *_QUANTIZED_FOLDERS),
    "torch_compiled": (*PLAIN_KINDS, *_QUANTIZED_FOLDERS),
    "onnxruntime": (*PLAIN_KINDS, "int8", "int8_dynamic", "int4"),
    "openvino": (*PLAIN_KINDS, "int8", "int4"),
    "llama_cpp": (*PLAIN_KINDS, "int8", "int4"),
    "vllm": (*PLAIN_KINDS, "awq", "gptq", "int8", "int8_dynamic", "fp8", "fp8_static"),
    "tensorrt_llm": PLAIN_KINDS,
}
"""Kinds of variant that a runtime takes.

torch and vllm read the folder that a quantizer of `egobench/compress` has written; onnxruntime, openvino and llama_cpp
take the unquantized parent and quantize it themselves, each in its own format."""
BY_ITSELF: Final[frozenset[Runtime]] = frozenset({"onnxruntime", "openvino", "llama_cpp", "tensorrt_llm"})
"""Runtimes that read the folder `prepare` writes, made of the unquantized model whatever the kind.

The others read the model's folder as it is, quantized or not."""


class InferenceSpec(Strict):
    """Requests of fixed lengths, one picture each, answered greedily and never ended early."""

    batch_sizes: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(1, 8), min_length=1, strict=False)
    """Requests answered together; each size is measured apart."""
    num_prompt_tokens: int = Field(default=384, ge=16)
    """Tokens of a prompt, the picture's included."""
    num_new_tokens: int = Field(default=32, ge=2)
    """Tokens of an answer; the first one is the prefill's, the others are decoded."""
    num_repeats: int = Field(default=10, ge=1)
    """Timed runs at every batch size."""
    num_warmup: int = Field(default=2, ge=0)
    """Runs before them that are left out of every figure."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the runtime; default: every core that the process may use."""
    max_logits_error: float = Field(default=0.8, gt=0)
    """Largest relative error of a quantized model's logits, against the parent's, that counts as the same model.

    Two unrelated outputs differ by 1.4, an output of zeros by 1; 4-bit weights drawn at random differ by 0.3 to 0.5.
    A model that is not quantized is held to what its number format allows: 0.01 in float32, 0.2 in 16 bits."""

    def logits_limit(self, kind: str, dtype: str) -> float:
        """Return the largest error at which outputs of a kind, computed in a number format, count as the model's."""
        if kind not in PLAIN_KINDS:
            return self.max_logits_error
        return 0.01 if dtype == "float32" else 0.2
