"""What a GPU would have chosen: attention kernels, and operators that autocast runs in fp32; all on a pretended CPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from egobench.models import attention
from egobench.train.replaced import replaced

FP32_ON_CUDA: Final = (
    "layer_norm", "native_layer_norm", "rsqrt", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "exp", "log", "reciprocal",
    "nll_loss", "softplus",
)  # fmt: skip
"""Operators that autocast runs in fp32 on CUDA, and in whatever comes on a CPU, of those that a model here may use.

Source: https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to float32".
"""
FP32_UNLESS_ASKED: Final = ("softmax.int", "log_softmax.int", "sum", "sum.dim_IntList", "cumsum", "prod")
"""The same, but for a caller that names a dtype."""


@contextlib.contextmanager
def of_cuda() -> Iterator[None]:
    """Have attention and autocast choose as they would on a GPU.

    PyTorch's flash kernel for CPUs keeps the same tensors as those for GPUs; so does the one that saves memory.
    """
    plain = vars(attention)["sdpa_attention_forward"]
    with (
        _fp32_of_cuda(),
        replaced(attention, "has_varlen", lambda device: True),
        replaced(attention, "sdpa_attention_forward", functools.partial(_chosen, plain)),
        replaced(attention, "sdpa_kernel", lambda backend: contextlib.nullcontext()),
    ):
        yield


def _chosen(
    plain: Any, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, *args: Any, **more: Any
) -> Any:
    """Run PyTorch's plain products where no fused kernel of CUDA takes what is given: fp32 and fewer heads of keys."""
    halved = torch.is_autocast_enabled("cpu") or query.dtype in (torch.float16, torch.bfloat16)
    # The tower has equally many; whether keys are repeated for the kernel is for the module to say.
    is_grouped = getattr(module, "num_key_value_groups", 1) > 1
    backend = SDPBackend.FLASH_ATTENTION if halved or not is_grouped else SDPBackend.MATH
    with sdpa_kernel(backend):
        return plain(module, query, key, *args, **more)


@contextlib.contextmanager
def _fp32_of_cuda() -> Iterator[None]:
    library: Any = _LIBRARY("aten", "IMPL", "AutocastCPU")
    for name in FP32_ON_CUDA:
        library.impl(name, _in_fp32(name, is_asked=False))
    for name in FP32_UNLESS_ASKED:
        library.impl(name, _in_fp32(name, is_asked=True))
    try:
        yield
    finally:
        library._destroy()


def _in_fp32(name: str, *, is_asked: bool) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    operator: Any = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def run(*args: Any, **kwargs: Any) -> Any:
        with cast("Any", torch._C)._ExcludeDispatchKeyGuard(_AUTOCAST):
            if is_asked and (kwargs.get("dtype") is not None or any(isinstance(one, torch.dtype) for one in args)):
                return operator(*args, **kwargs)
            return operator(*(_wide(one) for one in args), **kwargs)

    return run


_LIBRARY: Final[Any] = torch.library.Library
_AUTOCAST: Final = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


def _wide(given: Any) -> Any:
    narrow = isinstance(given, torch.Tensor) and given.dtype in (torch.float16, torch.bfloat16)
    return given.float() if narrow else given
