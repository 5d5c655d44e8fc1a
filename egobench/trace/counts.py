"""Counts operators, FLOPs of products and bytes of collectives, operator by operator.

Not `FlopCounterMode`: it holds on to tensors, and what is freed later is another peak.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import torch
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from egobench.records.trace import TracedCounts
from egobench.trace.storages import COLLECTIVES


class Counts:
    """What was executed since the last time that somebody asked."""

    def __init__(self, lengths: tuple[int, ...] = ()) -> None:
        """Args: lengths: Of the samples of a packed row, for kernels that are told where they begin."""
        self._num_scores = sum(length**2 for length in lengths)
        self._clear()

    def _clear(self) -> None:
        self._num_ops = self._flops = 0
        self._bytes: Counter[str] = Counter()

    def take(self) -> TracedCounts:
        """Return what was counted, and begin anew."""
        taken = TracedCounts(
            num_ops=self._num_ops, matmul_flops=self._flops, communicated_bytes=dict(sorted(self._bytes.items()))
        )
        self._clear()
        return taken

    def hear(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
        """Count one operator."""
        if func.namespace in COLLECTIVES:
            self._bytes[func._opname.strip("_")] += max((_num_bytes(one) for one in args), default=0)
        elif func.namespace != "prim" and not func.is_view:  # fake tensors are asked for their device by an operator
            self._num_ops += 1
        packet = func._overloadpacket
        if func.namespace == "torch_attn":  # its own formula reads where samples begin, and fake tensors have no values
            is_back, query = func._opname.endswith("backward"), args[1 if func._opname.endswith("backward") else 0]
            self._flops += (10 if is_back else 4) * query.shape[-2] * query.shape[-1] * self._num_scores
        elif packet in _CPU_FLASH:
            self._flops += _CPU_FLASH[packet](args)
        elif (formula := flop_registry.get(packet)) is not None:
            self._flops += int(formula(*args, **kwargs, out_val=made))


def _num_bytes(given: Any) -> int:
    held = (one for one in tree_iter(given) if isinstance(one, torch.Tensor))
    return sum(one.numel() * one.element_size() for one in held)


def _forward(args: tuple[Any, ...]) -> int:
    query, key, value = (one.shape for one in args[:3])
    return int(_SDPA(query, *(_of_heads(one, query[1]) for one in (key, value))))


def _backward(args: tuple[Any, ...]) -> int:
    grad, query, key, value = (one.shape for one in args[:4])
    return int(_SDPA_BACKWARD(grad, query, *(_of_heads(one, query[1]) for one in (key, value))))


def _of_heads(shape: Any, heads: int) -> tuple[int, ...]:
    rows, _, width, size = shape
    return rows, heads, width, size


_SDPA: Final[Any] = sdpa_flop_count
_SDPA_BACKWARD: Final[Any] = sdpa_backward_flop_count
_CPU_FLASH: Final = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
