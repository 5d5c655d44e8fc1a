"""Attention kernels: each value of the axis returns the name under which transformers finds it.

Packed rows (several samples in one row) reach a kernel as keyword arguments: `segment_lengths`, the samples' lengths
on the host, transformers' own `cu_seq_lens_q` and `max_length_q`, and mostly a `grid` with its `cells`, which puts the
samples side by side. Every kernel parts the row by these. None relies on the mask that transformers makes where it
detects, by `position_ids`, that a row is packed: it does not while there is a cache, which is there unless
`use_cache=False` is passed, and samples would silently see each other.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel, varlen
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask, flex_attention_mask, sdpa_mask
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from egobench.errors import EnvironmentProblem

Forward = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
"""(module, query, key, value, mask, **more) -> output [rows, width, heads, head size] and weights, which none needs.

Query, key and value are [rows, heads, width, head size]; the LLM has fewer heads of keys than of queries.
"""

PREFIX: Final = "egobench_"
"""No name of ours may hold the word flash: transformers takes such a kernel for one of the flash-attn package."""


def eager() -> str:
    """Multiply the matrices one after another; the reference of every other kernel."""
    return _register("eager", _each_sample(_eager), eager_mask)


def sdpa() -> str:
    """Let PyTorch choose among its own kernels."""
    return _register("sdpa", _side_by_side(sdpa_attention_forward), _mask_of_generation)


def sdpa_flash() -> str:
    """Force FlashAttention-2 inside PyTorch; on a CPU, its flash kernel.

    The three forced backends take no mask: where there is one (questions are asked with left padding and a cache),
    PyTorch chooses. Training passes none and never falls back: a backend that cannot run raises. Packed rows run in
    the variable-length kernel (torch.nn.attention.varlen) on a GPU, with the samples side by side on a CPU.
    """
    side_by_side = _side_by_side(_forced(SDPBackend.FLASH_ATTENTION))

    def forward(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if has_varlen(query.device) and kwargs.get("cu_seq_lens_q") is not None:
            return in_one_kernel(query, key, value, **kwargs), None
        return side_by_side(module, query, key, value, attention_mask, **kwargs)

    return _register("sdpa_fa2", forward, _mask_of_generation)


def sdpa_cudnn() -> str:
    """Force cuDNN's attention; it compiles a plan for every new shape, so paddings with few shapes suit it."""
    return _register("sdpa_cudnn", _side_by_side(_forced(SDPBackend.CUDNN_ATTENTION)), _mask_of_generation)


def sdpa_efficient() -> str:
    """Force the memory-efficient kernel, PyTorch's only fused one for fp32 on a GPU."""
    return _register("sdpa_efficient", _side_by_side(_forced(SDPBackend.EFFICIENT_ATTENTION)), _mask_of_generation)


def flash_attention_2() -> str:
    """Use the flash-attn package.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    if not is_flash_attn_2_available():
        raise _missing("flash_attention_2", "the flash-attn package: pip install flash-attn --no-build-isolation")
    return "flash_attention_2"


def flash_attention_3() -> str:
    """Use the flash-attn-3 package, which is built for Hopper.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    if not is_flash_attn_3_available():
        source = "https://github.com/Dao-AILab/flash-attention"
        raise _missing("flash_attention_3", f"the flash-attn-3 package: build the folder hopper/ of {source}")
    return "flash_attention_3"


def flex() -> str:
    """Use PyTorch's flex_attention, compiled, with block masks."""
    return _register("flex", _flex, flex_attention_mask)


def has_varlen(device: torch.device) -> bool:
    """Tell whether torch.nn.attention.varlen runs on a device."""
    return device.type == "cuda"


def sees_grid(kernel: str, *, on_gpu: bool) -> bool:
    """Tell whether a kernel computes the scores of whole samples side by side, where a packed batch has a grid."""
    return kernel in ("sdpa", "sdpa_cudnn", "sdpa_efficient") or (kernel == "sdpa_flash" and not on_gpu)


def _register(name: str, forward: Forward, mask: Callable[..., Any]) -> str:
    AttentionInterface.register(PREFIX + name, forward)
    AttentionMaskInterface.register(PREFIX + name, mask)
    return PREFIX + name


def _missing(name: str, what: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"attention '{name}' needs a CUDA GPU and {what}. Without it, 'sdpa_flash' is FlashAttention-2 inside PyTorch"
    )


def _mask_of_generation(
    *, q_length: int, kv_length: int, attention_mask: torch.Tensor | None = None, **more: Any
) -> torch.Tensor | None:
    # Training passes no mask: the kernel is told that it is causal, and where samples begin. transformers would make
    # one for packed rows, and under torch.compile for any rows.
    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **more)


def _eager(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    # Every modeling file of transformers has its own, and wrappers subclass a module in a file of theirs.
    files = (sys.modules[cls.__module__] for cls in type(module).__mro__)
    forward: Forward = next(file.eager_attention_forward for file in files if hasattr(file, "eager_attention_forward"))
    return forward(module, query, key, value, attention_mask, **kwargs)


def _forced(backend: SDPBackend) -> Forward:
    plain: Forward = sdpa_attention_forward

    def forward(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if attention_mask is not None or query.shape[2] != key.shape[2]:
            if module.training:
                raise RuntimeError(f"training passed a mask, which {backend.name} does not take")
            return plain(module, query, key, value, attention_mask, **kwargs)
        if backend is SDPBackend.EFFICIENT_ATTENTION:
            # In torch 2.11 it wants as many heads of keys as of queries.
            num_repeats = query.shape[1] // key.shape[1]
            key, value = repeat_kv(key, num_repeats), repeat_kv(value, num_repeats)
            is_causal = kwargs.get("is_causal")
            kwargs["is_causal"] = getattr(module, "is_causal", True) if is_causal is None else is_causal
            module = _SAME_HEADS
        with sdpa_kernel(backend):
            return plain(module, query, key, value, None, **kwargs)

    return forward


def _flex(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if cu_seq_lens_q is not None:
        attention_mask = _mask_of_samples(cu_seq_lens_q, query.shape[2])
    plain: Forward = flex_attention_forward
    return plain(module, query, key, value, attention_mask, **kwargs)


@torch.compiler.disable  # type: ignore[untyped-decorator]
@functools.lru_cache(maxsize=1)  # every layer asks for the same
def _mask_of_samples(bounds: torch.Tensor, width: int) -> Any:
    sample = torch.bucketize(torch.arange(width, device=bounds.device), bounds[1:], right=True)

    def allowed(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (sample[query] == sample[key]) & (query >= key)

    return flex_attention_mask(
        batch_size=1, q_length=width, kv_length=width, mask_function=allowed, device=bounds.device
    )  # fmt: skip


_SAME_HEADS: Final = torch.nn.Identity()
"""Stands for an attention module whose keys have been repeated already."""


def in_one_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> torch.Tensor:
    """Attend inside every sample of a packed row with torch.nn.attention.varlen: FlashAttention-2, on a GPU only.

    Takes [1, heads, width, head size], returns [1, width, heads, head size].
    """
    if dropout:
        raise ValueError("torch.nn.attention.varlen has no dropout")
    # Autocast does not know this kernel, and rotated queries and keys are fp32 under it.
    kind = query.device.type
    is_cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if is_cast else query.dtype
    parts = [part.squeeze(0).transpose(0, 1).to(dtype) for part in (query, key, value)]
    bounds = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    output: torch.Tensor = _VARLEN(*parts, *bounds, window_size=(-1, 0), scale=scaling, **_VARLEN_GQA)
    return output.unsqueeze(0)


_VARLEN: Final[Any] = varlen.varlen_attn
# torch 2.11 has no such argument: its kernel takes fewer heads of keys unasked.
_VARLEN_GQA: Final = {"enable_gqa": True} if "enable_gqa" in inspect.signature(_VARLEN).parameters else {}


def _side_by_side(forward: Forward) -> Forward:
    """Let a causal kernel see all samples of a packed row in one call, as rows of their own.

    Exact: what fills up the shorter ones stands on the right, where no token of theirs looks, and is dropped again.
    Next to one call for each sample this saves most of the calls, and does not break a compiled graph.
    """
    each_sample = _each_sample(forward)

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        grid: torch.Tensor | None = None,
        cells: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if grid is None or cells is None or attention_mask is not None:
            return each_sample(module, query, key, value, attention_mask, **kwargs)
        kwargs.pop("segment_lengths", None)
        laid_out = [_laid_out(part, grid) for part in (query, key, value)]
        output = forward(module, *laid_out, None, **kwargs)[0]
        return output.flatten(0, 1).index_select(0, cells).unsqueeze(0), None

    return attend


def _laid_out(part: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Return [samples, heads, longest, head size] of a packed row [1, heads, width, head size]."""
    _, heads, _, size = part.shape
    return part.squeeze(0).index_select(1, grid.flatten()).view(heads, *grid.shape, size).transpose(0, 1)


def _each_sample(forward: Forward) -> Forward:
    """Let a kernel see the samples of a packed row one by one: exact in any kernel, and linear in the row."""

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        segment_lengths: tuple[int, ...] | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if segment_lengths is None:
            return forward(module, query, key, value, attention_mask, **kwargs)
        output: torch.Tensor = _cut(forward, module, (query, key, value), attention_mask, segment_lengths, kwargs)
        return output, None

    return attend


# Other lengths in every step would be another compiled graph in every step.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _cut(
    forward: Forward,
    module: torch.nn.Module,
    whole: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    lengths: tuple[int, ...],
    kwargs: dict[str, Any],
) -> torch.Tensor:
    outputs, start = [], 0
    for query, key, value in zip(*(torch.split(part, list(lengths), dim=2) for part in whole), strict=True):
        end = start + query.shape[2]
        # Any causal mask of the row is the sample's own where it looks at itself.
        own = None if mask is None else mask[..., start:end, start:end]
        outputs.append(forward(module, query, key, value, own, **kwargs)[0])
        start = end
    return torch.cat(outputs, dim=1)
