"""What docs/axes.md says of each value and code does not know: its library, the tests that show it, its source.

A test fails where a value has no row, and where a row names a test or a library that does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from egobench.spec.axes import AxisValue


@dataclass(frozen=True)
class AxisFact:
    """One value of an axis."""

    what: str
    """A few words."""
    libraries: tuple[str, ...]
    """Distributions that do the work; empty: own code."""
    shown_by: tuple[str, ...]
    """`FILE::TEST` under tests/."""
    source: str
    """Where the method or the kernel is described."""
    beside: Mapping[str, AxisValue] = field(default_factory=dict)
    """Axes that must have other values than their defaults for this one to mean something."""


THIN: Final = "train/test_parity_matrix.py::test_thin_slice"
OTHERS: Final = "train/test_parity_matrix.py::test_the_other_axes"
SPLITS: Final = "train/test_parity.py::test_same_losses_norms_counts_and_weights"
KERNELS: Final = "models/test_attention.py::test_same_loss_and_gradients"
APART: Final = "models/test_attention.py::test_no_sample_sees_another"
TRAINED: Final = "train/test_methods.py::test_exactly_what_is_trained_changes"
ADAPTED: Final = "train/test_adapters.py::test_only_adapters_and_projector_are_trained"
FSDP: Final = "train/test_fsdp.py::test_the_same_training_as_one_rank"
STAGES: Final = "train/test_zero.py::test_every_stage_in_every_way"
LEARNS: Final = "train/test_precision.py::test_it_learns"
RECOMPUTED: Final = "train/test_checkpointing.py::test_gradients_are_the_same"
CUDA: Final = "train/test_on_gpu.py::test_the_loop_on_cuda"
FORMATS_CUDA: Final = "train/test_on_gpu.py::test_every_precision_computes_nearly_what_fp32_does"
METHODS_CUDA: Final = "train/test_on_gpu.py::test_every_method_trains_and_answers"
KERNELS_CUDA: Final = "train/test_on_gpu.py::test_every_kernel_trains_as_eager_does"
SHARDED_CUDA: Final = "train/test_on_gpu.py::test_sharding_with_nccl_is_the_training_of_one_gpu"

_ZERO: Final = "https://arxiv.org/abs/1910.02054"
_FSDP: Final = "https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html"
_SDPA: Final = "https://docs.pytorch.org/docs/stable/generated/torch.nn.attention.SDPBackend.html"
_FLASH: Final = "https://github.com/Dao-AILab/flash-attention"
_AMP: Final = "https://docs.pytorch.org/docs/stable/amp.html"
_CHECKPOINT: Final = "https://docs.pytorch.org/docs/stable/checkpoint.html"
_COMPILE: Final = "https://docs.pytorch.org/docs/stable/generated/torch.compile.html"
_ADAMW: Final = "https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html"
_OWN: Final = "docs/architecture.md"
_RANKS: Final[dict[str, AxisValue]] = {"gpus": 2}
_SHARDED: Final[dict[str, AxisValue]] = {"strategy": "fsdp", "gpus": 2}
_BF16: Final[dict[str, AxisValue]] = {"precision": "bf16"}
_FROZEN: Final[dict[str, AxisValue]] = {"method": "freeze"}

STRATEGIES: Final = {
    "single": AxisFact("one rank", ("torch",), (SPLITS, CUDA), _OWN),
    "ddp": AxisFact(
        "replicas, gradients summed in buckets during the backward pass", ("torch",), (SPLITS, THIN),
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html", _RANKS,
    ),
    "fsdp": AxisFact(
        "FSDP2: everything is sharded, per block", ("torch",), (FSDP, THIN, OTHERS, SHARDED_CUDA), _FSDP, _RANKS
    ),
    "zero1": AxisFact("optimizer states are sharded", ("deepspeed",), (STAGES, THIN, SHARDED_CUDA), _ZERO, _RANKS),
    "zero2": AxisFact("and gradients", ("deepspeed",), (STAGES, THIN, SHARDED_CUDA), _ZERO, _RANKS),
    "zero3": AxisFact("and parameters", ("deepspeed",), (STAGES, THIN, OTHERS, SHARDED_CUDA), _ZERO, _RANKS),
}  # fmt: skip
SHARDINGS: Final = {
    "full_shard": AxisFact("parameters are given back after the forward pass", ("torch",), (THIN,), _FSDP, _SHARDED),
    "shard_grad_op": AxisFact("parameters stay whole until the backward pass", ("torch",), (THIN,), _FSDP, _SHARDED),
    "hybrid_shard": AxisFact(
        "sharded inside a node, replicated between nodes", ("torch",), (THIN,), _FSDP,
        {"strategy": "fsdp", "gpus": 4},
    ),
}  # fmt: skip
OFFLOADS: Final = {
    "none": AxisFact("everything stays on the device", (), (THIN,), _OWN),
    "optimizer": AxisFact(
        "optimizer states, and the update, on the host", ("deepspeed",), (STAGES, SHARDED_CUDA), "https://arxiv.org/abs/2101.06840",
        {"strategy": "zero2", "gpus": 2},
    ),
    "parameters": AxisFact(
        "parameters too", ("torch", "deepspeed"), (FSDP, STAGES, SHARDED_CUDA), "https://arxiv.org/abs/2101.06840",
        _SHARDED,
    ),
}  # fmt: skip
METHODS: Final = {
    "full": AxisFact("every parameter", (), (TRAINED, THIN), _OWN),
    "lora": AxisFact("low-rank adapters", ("peft",), (ADAPTED, THIN, METHODS_CUDA), "https://arxiv.org/abs/2106.09685"),
    "dora": AxisFact(
        "adapters, and the length of every row", ("peft",), (ADAPTED, THIN, METHODS_CUDA), "https://arxiv.org/abs/2402.09353"
    ),
    "qlora": AxisFact(
        "adapters beside 4-bit matrices (nf4)", ("peft", "bitsandbytes"),
        (ADAPTED, "train/test_adapters.py::test_only_the_matrices_of_the_llm_are_in_4_bits", METHODS_CUDA),
        "https://arxiv.org/abs/2305.14314",
    ),
    "freeze": AxisFact("the tower is frozen, and runs without a graph", (), (TRAINED, THIN, METHODS_CUDA), _OWN),
    "last_blocks": AxisFact(
        "the last blocks of the LLM: about a tenth of all parameters", (),
        (TRAINED, THIN, "train/test_methods.py::test_the_last_blocks_are_about_a_tenth", METHODS_CUDA), _OWN,
    ),
}  # fmt: skip
PROJECTORS: Final = {
    "trained": AxisFact("trained beside adapters or the LLM", (), (TRAINED, ADAPTED), _OWN, _FROZEN),
    "frozen": AxisFact("frozen", (), (TRAINED, "train/test_adapters.py::test_a_frozen_projector_stays"), _OWN, _FROZEN),
}
PRECISIONS: Final = {
    "fp32": AxisFact("no reduced format anywhere", ("torch",), (THIN, CUDA), _OWN),
    "tf32": AxisFact(
        "fp32 weights, products in TF32", ("torch",), (FORMATS_CUDA,),
        "https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices",
    ),
    "bf16": AxisFact(
        "autocast over fp32 weights", ("torch",),
        ("train/test_loop.py::test_bf16_computes_close_to_fp32_and_keeps_fp32_weights", CUDA, FORMATS_CUDA), _AMP,
    ),
    "bf16_pure": AxisFact("weights, gradients and states in bf16", ("torch",), (LEARNS, FORMATS_CUDA), _OWN),
    "fp16": AxisFact(
        "autocast and a loss scaler", ("torch",),
        (LEARNS, "train/test_precision.py::test_a_step_that_overflows_is_skipped_and_said_so", FORMATS_CUDA), _AMP,
    ),
    "fp8": AxisFact(
        "the LLM's products in FP8, one scale a row", ("torchao",),
        ("train/test_precision.py::test_fp8_learns_nearly_what_bf16_learns", FORMATS_CUDA),
        "https://github.com/pytorch/ao/tree/main/torchao/float8",
    ),
}  # fmt: skip
ATTENTIONS: Final = {
    "eager": AxisFact("matrix products one after another; the reference", ("transformers",), (KERNELS, APART), _OWN),
    "sdpa": AxisFact(
        "PyTorch chooses among its kernels", ("torch",), (KERNELS, APART, THIN, KERNELS_CUDA), _SDPA
    ),
    "sdpa_flash": AxisFact(
        "FlashAttention-2 inside PyTorch; on a CPU its flash kernel", ("torch",),
        (KERNELS, APART, OTHERS, KERNELS_CUDA), _SDPA, _BF16,
    ),
    "sdpa_cudnn": AxisFact("cuDNN's attention", ("torch",), (KERNELS_CUDA,), _SDPA, _BF16),
    "sdpa_efficient": AxisFact("the memory-efficient kernel", ("torch",), (KERNELS_CUDA,), _SDPA, _BF16),
    "flash_attention_2": AxisFact("the flash-attn package", ("flash-attn",), (), _FLASH, _BF16),
    "flash_attention_3": AxisFact("the flash-attn-3 package, for Hopper", ("flash-attn-3",), (), _FLASH, _BF16),
    "flex": AxisFact(
        "flex_attention, compiled, with block masks", ("torch",),
        (
            "models/test_attention.py::test_the_mask_of_flex_keeps_packed_samples_apart",
            "train/test_on_gpu.py::test_flex_trains_as_eager_does",
        ),
        "https://docs.pytorch.org/docs/stable/nn.attention.flex_attention.html",
    ),
}  # fmt: skip
CHECKPOINTINGS: Final = {
    "none": AxisFact("every activation is kept", (), (THIN,), _OWN),
    "full": AxisFact("the input of every block is kept", ("torch",), (RECOMPUTED, THIN), _CHECKPOINT),
    "selective": AxisFact(
        "what matrix products and attention return is kept", ("torch",),
        (RECOMPUTED, THIN, "train/test_checkpointing.py::test_selective_multiplies_and_attends_once_only"), _CHECKPOINT,
    ),
    "every_2": AxisFact("every second block is recomputed", ("torch",), (RECOMPUTED, THIN), _CHECKPOINT),
    "every_4": AxisFact("every fourth block is recomputed", ("torch",), (RECOMPUTED,), _CHECKPOINT),
}  # fmt: skip
COMPILED: Final = "train/test_compile.py::test_compiled_trains_the_same_in_few_graphs"
COMPILES: Final = {
    "off": AxisFact("nothing is compiled", (), (THIN,), _OWN),
    "blocks": AxisFact("each block of tower and LLM", ("torch",), (COMPILED,), _COMPILE),
    "whole": AxisFact("the whole model", ("torch",), (COMPILED,), _COMPILE),
}
PADDINGS: Final = {
    "max": AxisFact("to the longest sequence that the recipe allows", (), (THIN,), _OWN),
    "dynamic": AxisFact("to the longest of the micro-batch", (), (THIN,), _OWN),
    "bucketed": AxisFact("samples of like length share a micro-batch", (), (THIN,), _OWN),
    "packed": AxisFact(
        "samples share one row; attention and positions do not cross them", (),
        (THIN, OTHERS, APART, "models/test_attention.py::test_a_packed_sample_has_the_logits_that_it_has_alone"),
        "https://arxiv.org/abs/2107.02027",
    ),
}  # fmt: skip
EIGHT_BITS: Final = (
    "train/test_optimizers.py::test_losses_follow_those_of_adamw",
    "train/test_optimizers.py::test_moments_are_in_8_bits",
)
OPTIMIZERS: Final = {
    "adamw": AxisFact(
        "one kernel per operation (foreach)", ("torch",), ("train/test_loop.py::test_fused_and_foreach_adamw_agree",),
        _ADAMW,
    ),
    "adamw_fused": AxisFact(
        "one kernel for the update", ("torch",), ("train/test_loop.py::test_fused_and_foreach_adamw_agree", OTHERS),
        _ADAMW,
    ),
    "adamw_8bit": AxisFact("states in 8 bits, by block", ("bitsandbytes",), EIGHT_BITS, "https://arxiv.org/abs/2110.02861"),
    "adamw_8bit_paged": AxisFact(
        "and paged to the host when memory is short", ("bitsandbytes",), EIGHT_BITS, "https://arxiv.org/abs/2305.14314"
    ),
    "adamw_8bit_torchao": AxisFact(
        "states in 8 bits, compiled", ("torchao",), EIGHT_BITS, "https://github.com/pytorch/ao/tree/main/torchao/optim"
    ),
}  # fmt: skip
LOSSES: Final = {
    "plain": AxisFact("logits of every position, softmax in fp32", ("torch",), (THIN,), _OWN),
    "chunked": AxisFact(
        "logits, and the last block's feed-forward, where supervised, chunk by chunk", (),
        (
            "train/test_losses.py::test_chunked_is_plain_with_a_few_logits_at_a_time",
            "train/test_losses.py::test_the_last_block_feeds_forward_only_what_is_supervised",
            OTHERS,
        ),
        _OWN,
    ),
    "fused_linear": AxisFact(
        "Liger's fused linear cross-entropy, where supervised", ("liger-kernel",),
        ("train/test_losses.py::test_fused_linear_in_triton_s_interpreter",),
        "https://arxiv.org/abs/2410.10989",
    ),
}  # fmt: skip
FACTS: Final[dict[str, dict[str, AxisFact]]] = {
    "strategy": STRATEGIES,
    "sharding": SHARDINGS,
    "offload": OFFLOADS,
    "method": METHODS,
    "projector": PROJECTORS,
    "precision": PRECISIONS,
    "attention": ATTENTIONS,
    "checkpointing": CHECKPOINTINGS,
    "compile": COMPILES,
    "padding": PADDINGS,
    "optimizer": OPTIMIZERS,
    "loss": LOSSES,
}
"""Axis -> value -> facts; the axes of the tower repeat those of the LLM, and the others have no table."""
