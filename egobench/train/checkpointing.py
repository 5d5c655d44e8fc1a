"""Which activations of a row of blocks are dropped in the forward pass and recomputed in the backward pass.

`torch.utils.checkpoint` (non-reentrant) around the forward of a block. Its hooks stay outside, where FSDP2 and ZeRO
gather parameters once for recomputation and backward pass together; so does `block.compile()`, whose compiler then
sees what is recomputed. transformers' own switch is not used: 5.17 wraps the hooks too, 5.23 does not.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Blocks = Sequence[nn.Module]

MATRIX_PRODUCTS: Final = frozenset(
    {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_mm", "bitsandbytes::gemm_4bit"}
)
ATTENTIONS: Final = frozenset(
    {
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_flash_attention_forward",
        "aten::_efficient_attention_forward",
        "aten::_cudnn_attention_forward",
        "torch_attn::_varlen_attn",
        "flash_attn::_flash_attn_forward",
        "flash_attn::_flash_attn_varlen_forward",
        "flash_attn_3::_flash_attn_forward",
        "flash_attn_3::fwd",
        "flex_attention",
    }
)
KEPT: Final = MATRIX_PRODUCTS | ATTENTIONS
"""What `selective` keeps, by the names of operators, as torchtitan does (it recomputes every second product)."""


def none(blocks: Blocks) -> None:
    """Keep every activation."""


def full(blocks: Blocks) -> None:
    """Keep only the input of every block."""
    for block in blocks:
        _recompute(block)


def selective(blocks: Blocks) -> None:
    """Keep what matrix products and attention return, and recompute the cheap rest: norms, activations, sums."""
    for block in blocks:
        _recompute(block, context_fn=_keep_costly)


def every_2(blocks: Blocks) -> None:
    """Keep only the input of every second block."""
    full(blocks[::2])


def every_4(blocks: Blocks) -> None:
    """Keep only the input of every fourth block."""
    # From the first on: memory peaks where the backward pass begins, with the last blocks, and to recompute a late
    # block would add to that peak.
    full(blocks[::4])


def _recompute(block: nn.Module, **options: Any) -> None:
    forward: Callable[..., Any] = block.forward
    trains = any(parameter.requires_grad for parameter in block.parameters())

    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        # Generation and a frozen tower leave nothing behind that could be dropped.
        if not torch.is_grad_enabled() or not (trains or _any_needs_gradient(args, kwargs)):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **options, **kwargs)

    cast("Any", block).forward = recomputed


def _any_needs_gradient(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    given = itertools.chain(args, kwargs.values())
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in given)


def _keep_costly() -> Any:
    return cast("Any", create_selective_checkpoint_contexts)(_policy)


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = operator.name().partition(".")[0]
    # What has no gradient no backward pass needs: DoRA's products of weights.
    is_kept = name in KEPT and torch.is_grad_enabled()
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
