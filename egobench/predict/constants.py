"""Every free number of the memory prediction, with its unit and its source, and how training loops differ.

Numbers that follow from what a program does (four bytes of a float, three copies of a tensor) stand in the formulas;
here is what had to be measured.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

GIB: Final = 2**30
MIB: Final = 2**20


@dataclass(frozen=True)
class Constants:
    """What was measured or fitted; fitted ones say on which rows."""

    context_bytes: float = 0.55 * GIB
    """CUDA context and kernels, outside of the allocator. Source: stas00/ml-engineering, 0.55 GiB on an A100."""
    nccl_bytes: float = 1.45 * GIB
    """More after the first collective. Source: the same, 0.55 to 2.00 GiB."""
    workspace_bytes: float = 32 * MIB
    """Of cuBLAS, inside the allocator. Source: torch's CUBLAS_WORKSPACE_CONFIG, 32 MiB on Hopper, 8 MiB before."""
    unusable_share: float = 0.0075
    """Of the nominal memory (1 GB = 2**30 bytes here): an A100-80GB shows 79.15 to 79.2 of 80 GiB. Notes, 2.5."""
    fragmented_share: float = 0.30
    """Reserved beyond allocated, of what comes and goes until the backward pass has ended (not the states): the usual.
    Read off nvidia-smi minus allocated on fms, Mistral and Llama-2 with adapters: about the median."""
    fragmented_share_high: float = 0.60
    """The same, where it goes badly: about the highest there."""
    fragmented_logits: float = 2.0
    """The same, of logits where every micro-batch has another width: the block that was freed, of gigabytes, is a
    little too small for the next. Chosen by eye on swift's rows of Qwen-1, where it falls from 2.6 to 1 with length."""
    fragmented_logits_high: float = 2.6
    """The same: about the highest there."""
    update_share: float = 0.75
    """Of what the update needs, that does not find room in what the backward pass has left. Mean of six rows of fms,
    full, from 0.15 to 1.1."""


DEFAULT: Final = Constants()


@dataclass(frozen=True)
class Software:
    """What a training loop does otherwise than ours, as far as memory knows it.

    Other loops are described from memory of their code, and by what fits the published rows; none was run or re-read.
    """

    plain_logits: tuple[float, float] = (10.0, 12.0)
    """Bytes per position and token of the vocabulary at the end of the forward pass, and where the loss goes back, with
    16-bit products and the plain loss. Ours: 16-bit logits, their fp32 copy and the log-softmax; then the log-softmax,
    its gradient and theirs."""
    keeps_outputs: bool = False
    """The loop holds what its model returned, its logits among it, while the loss goes back: a plain loop does."""
    compiled_logits: float | None = None
    """The same for the plain loss, where it is compiled too; None: it is not."""
    chunked_logits: float = 2.0
    """The same for a loss in chunks that does not aim: logits of all positions, without their copies."""
    aims: bool = False
    """A loss other than the plain one makes logits at supervised positions only."""
    adapter_bytes: int | None = None
    """Of an adapter's number; None: as trained weights are. PEFT keeps 4 (`autocast_adapter_dtype`)."""
    casts_inputs: bool = False
    """PEFT casts the input of every adapter to fp32."""
    keeps_16_bit: bool = False
    """Weights that are not trained are all 16 bits, norms and embeddings too, and so is the residual stream."""
    is_stream_fp32: bool = False
    """`prepare_model_for_kbit_training`: norms and embeddings in fp32, and so the residual stream."""
    repeats_kv: bool = False
    """Keys and values are copied for every query head before attention."""
    joins_qkv: bool = False
    """Queries, keys and values are cut out of one product: values that are not repeated keep all of it, and the outputs
    of adapters of some of the three, put in their places, are kept as well (litgpt)."""
    drops_inputs: bool = False
    """Dropout before every adapter, which keeps its own 16-bit input and a mask."""
    upcasts_norms: bool = True
    """Norms copy a 16-bit stream to fp32, and autograd keeps the copy."""
    selects_half: bool = False
    """`selective` keeps every second product only (torchtitan)."""
    fsdp: int = 2
    """1: FullyShardedDataParallel, whose root holds embedding and head; 2: fully_shard."""
    keeps_streams: bool = False
    """FSDP 1 with frozen units holds on to the gradient of every checkpoint until the backward pass has ended: its
    hooks would wait for gradients that frozen inputs never get. Inferred from slopes of fms, not seen in a trace."""
    keeps_gathered: bool = False
    """FSDP 1 keeps frozen weights, once gathered, until the backward pass has ended (torch 2.0; mended by pull request
    101982)."""
    waits_to_reduce: bool = False
    """Where micro-steps are accumulated, FSDP adds up whole gradients, and cuts them up in the last one (`no_sync`)."""
    holds_gradients: bool = False
    """With `shard_grad_op` micro-steps add up whole gradients until the last one reduces them."""
    loads_whole: bool = False
    """FSDP cuts up a model that every rank holds whole; the peak may lie there."""
    saves_4bit_inputs: bool = False
    """Products with 4-bit matrices keep their input, which nothing reads, as long as the loss lives (bitsandbytes until
    0.43); a loop that holds its loss has those of one micro-step until the next one has made its own."""
    sums_in_fp32: bool = False
    """ZeRO adds micro-steps up in fp32 (`grad_accum_dtype`)."""
    quantised_bytes: float = 0.5 + 1 / 64 + 4 / (64 * 256)
    """Of a 4-bit number: nf4 with double quantisation."""


_FMS: Final = Software(
    # transformers 4.4x: 16-bit logits, fp32 copy, shifted copy, log-softmax; then two gradients for the first two.
    plain_logits=(14.0, 14.0), adapter_bytes=4, casts_inputs=True, keeps_16_bit=True, repeats_kv=True, fsdp=1,
    keeps_streams=True, waits_to_reduce=True,
)  # fmt: skip


_HF: Final = dataclasses.replace(_FMS, plain_logits=(10.0, 12.0), repeats_kv=False)
# Scales are not quantised, unless somebody asks for it.
_HF_KBIT: Final = dataclasses.replace(_HF, is_stream_fp32=True, quantised_bytes=0.5 + 4 / 64)
_FOAK: Final[dict[str, Any]] = {"plain_logits": (10.0, 10.0)}
_IN_HALF: Final[dict[str, Any]] = {"plain_logits": (6.0, 6.0)}
"""A loss of 16-bit logits that copies them without their last position; two gradients going back."""
_GPTQ: Final[dict[str, Any]] = {"quantised_bytes": 0.5 + 2.5 / 128}
_SWIFT: Final = dataclasses.replace(_FMS, plain_logits=(12.0, 12.0), repeats_kv=False)

# What its blocks and its loss keep was counted on the model itself (00af8b0d, in bf16): chunks of 16-bit logits,
# which the loop holds on to beside their log-softmax.
_LITGPT: Final = Software(
    loads_whole=True, saves_4bit_inputs=True, quantised_bytes=0.5 + 4 / 64, repeats_kv=True, joins_qkv=True,
    drops_inputs=True, waits_to_reduce=True, chunked_logits=4.0, fsdp=1,
)  # fmt: skip

_TITAN: Final = Software(upcasts_norms=False, repeats_kv=True, selects_half=True, compiled_logits=8.0)

SOFTWARE: Final[dict[str, Software]] = {
    "egobench": Software(aims=True, sums_in_fp32=True, holds_gradients=True),
    # Today's transformers (5.x) moves labels instead of logits, and repeats no keys where there is no mask.
    "hf": _HF,
    # The same after prepare_model_for_kbit_training, as TRL and most examples of QLoRA do.
    "hf_kbit": _HF_KBIT,
    # A plain loop around either, instead of Trainer.
    "hf_loop": dataclasses.replace(_HF, keeps_outputs=True),
    "hf_loop_kbit": dataclasses.replace(_HF_KBIT, keeps_outputs=True),
    "fms": _FMS,
    "fms_foak": dataclasses.replace(_FMS, **_FOAK),
    "fms_bnb": _FMS,
    "fms_bnb_foak": dataclasses.replace(_FMS, **_FOAK),
    "fms_bnb_kbit": dataclasses.replace(_FMS, is_stream_fp32=True),
    # GPT-BigCode makes its loss from 16-bit logits; under autocast it is cast, and so is what the model returns.
    "fms_bigcode": dataclasses.replace(_FMS, plain_logits=(8.0, 8.0)),
    "fms_bigcode_foak": dataclasses.replace(_FMS, plain_logits=(6.0, 6.0)),
    "fms_bigcode_bnb": dataclasses.replace(_FMS, plain_logits=(18.0, 18.0)),
    "fms_bigcode_bnb_foak": dataclasses.replace(_FMS, plain_logits=(14.0, 14.0)),
    "fms_gptq": dataclasses.replace(_FMS, **_GPTQ),
    "fms_gptq_foak": dataclasses.replace(_FMS, **_GPTQ, **_FOAK),
    # The fused cross-entropy of flash-attn: 16-bit logits and their gradient.
    "llm_foundry": Software(plain_logits=(2.0, 4.0), upcasts_norms=False),
    "torchtitan": _TITAN,
    "torchtitan_2026": dataclasses.replace(_TITAN, repeats_kv=False),  # since pull request 2259, of January
    "torchtune": Software(repeats_kv=True, compiled_logits=10.0),
    "swift": _SWIFT,
    "swift_gptq": dataclasses.replace(_SWIFT, **_GPTQ),
    "swift_bnb": dataclasses.replace(_SWIFT, is_stream_fp32=True),
    "swift_qwen": _SWIFT,
    "swift_gptq_qwen": dataclasses.replace(_SWIFT, **_GPTQ),
    "swift_bnb_qwen": dataclasses.replace(_SWIFT, is_stream_fp32=True),
    "litgpt": _LITGPT,
    "litgpt_dq": dataclasses.replace(_LITGPT, quantised_bytes=Software.quantised_bytes),
    "litgpt_first": dataclasses.replace(_LITGPT, keeps_gathered=True),
    # Thunder's benchmark of litgpt: a loss of 16-bit logits as they are, and a loop that keeps them.
    "litgpt_plain": Software(plain_logits=(4.0, 6.0), keeps_outputs=True, repeats_kv=True),
    "fsdp_qlora": dataclasses.replace(_FMS, casts_inputs=False),
    # Qwen's own code makes its loss of 16-bit logits, where nothing autocasts it: under DeepSpeed.
    "qwen": dataclasses.replace(_SWIFT, **_IN_HALF),
    "qwen_gptq": dataclasses.replace(_SWIFT, **_IN_HALF, **_GPTQ),
    # ljm565/universal-llm-trainer, which makes its own loss too.
    "universal_trainer": dataclasses.replace(_FMS, **_IN_HALF),
    "universal_trainer_joined": dataclasses.replace(_FMS, **_IN_HALF),
    # Liger's loss makes its gradients in the forward pass from chunks of logits, about hidden / vocabulary of them.
    "hf_liger": dataclasses.replace(_FMS, plain_logits=(0.3, 0.1), upcasts_norms=False),
    "xtuner": _FMS,
    # prime-rl keeps what its model returns, fp32 logits among it, while the loss goes back.
    "prime_sft": Software(plain_logits=(12.0, 16.0), sums_in_fp32=True),
    # Its reinforcement loop: chunks of 2,048 tokens of the vocabulary, their fp32 copies and gradients.
    "prime_rl": Software(plain_logits=(0.2, 0.2), sums_in_fp32=True),
    # torchtune of May 2024: logits are made fp32 at once, copied without the last position, and kept by the loop.
    "torchtune_first": Software(repeats_kv=True, plain_logits=(8.0, 12.0), fsdp=1, keeps_streams=True),
    "internvl": Software(plain_logits=(14.0, 14.0), adapter_bytes=4, keeps_16_bit=True),
}
"""Name -> loop. `hf` is HF Trainer with PEFT; the others are the stacks of published measurements."""
