"""The cross-entropy over the vocabulary, as a sum over supervised tokens."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from egobench.data.batches import Batch
from egobench.models.prompt import IGNORED


def plain(model: nn.Module, batch: Batch, pixel_values: torch.Tensor) -> torch.Tensor:
    """Compute all logits, in fp32 for the loss; return the sum over the supervised tokens of the micro-batch."""
    # No attention mask: padding stands on the right, where a causal mask hides it from every real token, and
    # without an explicit mask sdpa may use its flash kernel.
    logits = model(input_ids=batch.input_ids, pixel_values=pixel_values, use_cache=False).logits
    # Shift the labels instead of the logits, which are by far the larger tensor.
    targets = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
    return functional.cross_entropy(
        logits.float().view(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORED, reduction="sum"
    )
