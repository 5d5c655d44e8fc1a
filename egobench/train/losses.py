"""The cross-entropy over the vocabulary, as a sum over supervised tokens.

`PLAIN` computes the logits of every position. The other two compute them at the supervised positions only, and with
them what nothing but these logits reads: the feed-forward half of the LLM's last block. They make the loss inside the
head's own forward pass: there alone its weight is whole under every strategy, because FSDP and ZeRO-3 gather a
parameter around the forward and backward pass of the module that owns it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from egobench.data.batches import Batch
from egobench.errors import EnvironmentProblem
from egobench.models.parts import head, llm_blocks
from egobench.models.prompt import IGNORED

CHUNK_BYTES: Final = 256 * 2**20
"""Of fp32 logits that live at once: 442 positions of InternVL3's vocabulary, enough to fill a GPU."""
ROWS_TILE: Final = 128
"""Chunks of at least so many positions hold a multiple of it: a tile of the matrix units is never half full."""


OWN: Final = "loss_own"
"""Submodule that a loss adds to a model to train it along; no part of the model that is exported."""
AIMED: Final = ("Qwen2DecoderLayer", "Qwen3DecoderLayer", "LlamaDecoderLayer")
"""Blocks of attention, then a feed-forward network, each added to the stream behind a norm of its own."""


@dataclass(frozen=True)
class Loss:
    """One value of the loss axis."""

    install: Callable[[nn.Module], nn.Module]
    """Prepare the model for it, before any strategy takes hold."""
    compute: Callable[[nn.Module, Batch, torch.Tensor], torch.Tensor]
    """(wrapped model, batch, pixel values) -> sum over the supervised tokens of the micro-batch."""
    counts_as: str | None = None
    """Value of the loss axis that makes the same products, where it is none of that axis itself."""


def _next_tokens(batch: Batch) -> torch.Tensor:
    # Shift the labels instead of the logits, which are by far the larger tensor.
    return functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED).flatten()


def call_model(model: nn.Module, batch: Batch, pixel_values: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
    """Call the model to train; return its logits, or the loss that its head makes instead."""
    # No attention mask: padding stands on the right, where a causal mask hides it from every real token, and
    # without an explicit mask sdpa may use its flash kernel.
    made: torch.Tensor = model(**batch.inputs(), pixel_values=pixel_values, use_cache=False, **more).logits
    return made


def _plain(model: nn.Module, batch: Batch, pixel_values: torch.Tensor) -> torch.Tensor:
    """Compute all logits, in fp32 for the loss."""
    logits = call_model(model, batch, pixel_values)
    flat = logits.float().view(-1, logits.shape[-1])
    return functional.cross_entropy(flat, _next_tokens(batch), ignore_index=IGNORED, reduction="sum")


@dataclass(frozen=True)
class Targets:
    """What the head is to predict, and where."""

    positions: torch.Tensor
    """int64 [supervised]: rows of the flattened hidden states."""
    tokens: torch.Tensor
    """int64 [supervised]; IGNORED at a row that only fills up."""


def targets_of(batch: Batch) -> Targets:
    """Find the supervised positions, whose number the host knows: a GPU is never waited for."""
    tokens = _next_tokens(batch)
    last = tokens.numel() - 1  # ignored whatever the labels are, so a surplus row adds nothing
    found = torch.nonzero_static(tokens != IGNORED, size=batch.supervised_tokens, fill_value=last).flatten()
    return Targets(found, tokens[found])


class LossHead(nn.Linear):
    """A head that makes the summed loss while it has targets, and logits (to generate from) while it has none."""

    targets: Targets | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.targets is None:
            return super().forward(input)
        rows = input.flatten(0, -2).index_select(0, self.targets.positions)
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        with torch.autocast(device, enabled=False):
            return self.loss_of(rows, self.targets.tokens, dtype)

    def loss_of(self, rows: torch.Tensor, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the summed loss of [n, hidden] and [n], multiplied in `dtype`, with the softmax in fp32."""
        raise NotImplementedError

    @contextlib.contextmanager
    def aimed_at(self, targets: Targets) -> Iterator[None]:
        """Make the loss for these targets inside."""
        self.targets = targets
        try:
            yield
        finally:
            self.targets = None


class AimedBlock(nn.Module):
    """A block of Qwen or Llama whose feed-forward half runs at the supervised positions only, where it is told them.

    Told by an argument, which recomputation gives it again: a state of the module would be another one by then.
    """

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, supervised: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        if supervised is None:
            whole: torch.Tensor = super().forward(hidden_states, *args, **kwargs)
            return whole
        block: Any = self
        attended, _ = block.self_attn(block.input_layernorm(hidden_states), *args, **kwargs)
        stream = (hidden_states + attended).flatten(0, -2)
        made = block.mlp(block.post_attention_layernorm(stream.index_select(0, supervised)))
        placed: torch.Tensor = stream.index_add(0, supervised, made.to(stream.dtype))
        return placed.view_as(hidden_states)


class ChunkedHead(LossHead):
    """Chunk by chunk, and once more in the backward pass, so that one chunk of logits lives at a time."""

    def loss_of(self, rows: torch.Tensor, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        loss: torch.Tensor = _ChunkedCrossEntropy.apply(rows, self.weight, tokens, dtype)  # type: ignore[no-untyped-call]
        return loss


class FusedLinearHead(LossHead):
    """Liger-Kernel's fused linear cross-entropy: Triton kernels that make the gradients in the forward pass."""

    def loss_of(self, rows: torch.Tensor, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if not len(rows):
            return rows.float().sum()  # it divides by the number of rows
        return _liger(rows.to(dtype), self.weight.to(dtype), tokens)


def rows_per_chunk(vocabulary: int) -> int:
    """Return how many positions' logits live at once."""
    rows = max(1, CHUNK_BYTES // (4 * vocabulary))
    return rows - rows % ROWS_TILE if rows > ROWS_TILE else rows


class _ChunkedCrossEntropy(torch.autograd.Function):
    # Gradients are made in the backward pass, not in the forward pass as Liger makes them: they are then scaled
    # before they are rounded (fp16), and the weight's gradient does not live beside every activation. The price is
    # the head's product once more, over the few supervised positions.

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        ctx.save_for_backward(rows, weight, tokens)
        ctx.dtype = dtype
        matrix, size = weight.to(dtype), rows_per_chunk(weight.shape[0])
        loss = rows.new_zeros((), dtype=torch.float32)
        for start in range(0, len(rows), size):
            part, wanted = rows[start : start + size].to(dtype), tokens[start : start + size]
            logits = functional.linear(part, matrix).float()
            loss += functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
        return loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        rows, weight, tokens = ctx.saved_tensors
        matrix, size = weight.to(ctx.dtype), rows_per_chunk(weight.shape[0])
        wants_rows, wants_weight = ctx.needs_input_grad[:2]
        of_rows = torch.empty_like(rows) if wants_rows else None
        of_weight: torch.Tensor | None = None
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, len(rows), size):
                part, wanted = rows[start : start + size].to(ctx.dtype), tokens[start : start + size]
                slope = _slope(functional.linear(part, matrix), wanted, scale)
                if of_rows is not None:
                    of_rows[start : start + size] = slope @ matrix
                if wants_weight:
                    grown = slope.t() @ part
                    # In fp32 where there are several to add; one alone needs no second copy.
                    of_weight = grown.to(weight.dtype if len(rows) <= size else torch.float32) + (
                        0 if of_weight is None else of_weight
                    )
        if wants_weight and of_weight is None:
            of_weight = torch.zeros_like(weight)
        return of_rows, of_weight.to(weight.dtype) if of_weight is not None else None, None, None


def _slope(logits: torch.Tensor, wanted: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the scaled loss by the logits, in their format."""
    slope = functional.softmax(logits, dim=-1, dtype=torch.float32)
    counts = wanted != IGNORED
    slope.scatter_add_(1, wanted.clamp(min=0)[:, None], slope.new_full((len(wanted), 1), -1.0))
    return slope.mul_((scale * counts)[:, None]).to(logits.dtype)


def _liger_function() -> Any:
    try:
        from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction
    except ImportError as error:
        raise EnvironmentProblem("loss 'fused_linear' needs liger-kernel: pip install 'egobench[liger]'") from error
    return LigerFusedLinearCrossEntropyFunction


def _liger(rows: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    function = _liger_function()
    vocabulary, hidden = weight.shape
    num_chunks = -(-len(rows) // rows_per_chunk(vocabulary))
    options = {
        "_input": rows, "weight": weight, "target": tokens, "ignore_index": IGNORED, "reduction": "sum",
        "accum_dtype": torch.float32,
        # Liger would cut the few supervised rows into chunks of a handful, and read the whole weight for each.
        "chunk_mem_const": -(-vocabulary // (hidden * num_chunks)),
    }  # fmt: skip
    # `apply` takes positions only, and versions differ in what they take after the first ten.
    taken = list(inspect.signature(function.forward).parameters.values())[1:]
    loss: torch.Tensor = function.apply(*(options.get(one.name, one.default) for one in taken))[0]
    return loss


def _at_head(model: nn.Module, batch: Batch, pixel_values: torch.Tensor) -> torch.Tensor:
    made_by = head(model)
    assert isinstance(made_by, LossHead)
    targets = targets_of(batch)
    with made_by.aimed_at(targets):
        return call_model(model, batch, pixel_values, supervised=targets.positions)


def install_head(kind: type[LossHead]) -> Callable[[nn.Module], nn.Module]:
    """Return what turns a model's head into one of a kind, and its last block into one that is told positions."""

    def install(model: nn.Module) -> nn.Module:
        found = head(model)
        assert type(found) is nn.Linear and found.bias is None  # methods leave it alone
        if kind is FusedLinearHead:
            _liger_function()  # a missing package is told before training starts
        # The class alone: parameters, names in a state dict, ties and isinstance(nn.Linear) stay what they are.
        found.__class__ = kind
        last = llm_blocks(model)[-1]
        if type(last).__name__ in AIMED:
            last.__class__ = type(f"Aimed{type(last).__name__}", (AimedBlock, type(last)), {})
        return model

    return install


PLAIN = Loss(install=lambda model: model, compute=_plain)
CHUNKED = Loss(install=install_head(ChunkedHead), compute=_at_head)
FUSED_LINEAR = Loss(install=install_head(FusedLinearHead), compute=_at_head)
