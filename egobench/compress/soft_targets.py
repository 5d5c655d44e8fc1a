"""The loss of a student's logits against its teacher's and the reference, chunk by chunk over supervised positions.

As `train/losses.py` makes the cross-entropy: logits live for one chunk of positions, and are made again in the backward
pass, whose gradients are scaled before they are rounded. A teacher's logits are made from its hidden states right
where they are needed, so that one chunk of both lives at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch.nn import functional

from egobench.compress.divergences import NUM_COPIES, Divergence
from egobench.models.prompt import IGNORED
from egobench.train.losses import ROWS_TILE

LOGIT_BYTES: Final = 4 * NUM_COPIES
"""Of memory per position and token of the vocabulary, for as long as its chunk lives."""


class SoftTargets(Protocol):
    """What a teacher says at the supervised positions; `here` are those of a chunk.

    The student's log-probabilities [n, vocabulary] are softened by the temperature already.
    """

    def value(self, log_q: torch.Tensor, here: slice) -> torch.Tensor:
        """Return the divergence [n]; `log_q` is used up."""

    def slope(self, log_q: torch.Tensor, here: slice) -> torch.Tensor:
        """Return its gradient by the softened logits [n, vocabulary]; `log_q` is left as it is."""


@dataclass(frozen=True)
class WholeTargets:
    """The teacher's whole distribution, from its hidden states."""

    rows: torch.Tensor
    """[positions, teacher's hidden size]."""
    weight: torch.Tensor
    """Of the teacher's head."""
    temperature: float
    divergence: Divergence

    def value(self, log_q: torch.Tensor, here: slice) -> torch.Tensor:
        return self.divergence.value(self._log_p(here), log_q)

    def slope(self, log_q: torch.Tensor, here: slice) -> torch.Tensor:
        return self.divergence.slope(self._log_p(here), log_q)

    def _log_p(self, here: slice) -> torch.Tensor:
        return softened(functional.linear(self.rows[here].to(self.weight.dtype), self.weight), self.temperature)


@dataclass(frozen=True)
class TopTargets:
    """The teacher's likeliest tokens, and all others as one more outcome: what is compared still sums to 1."""

    ids: torch.Tensor
    """int64 [positions, k]."""
    log_probs: torch.Tensor
    """fp32 [positions, k + 1], softened; the last one is of all other tokens together."""
    divergence: Divergence

    def value(self, log_q: torch.Tensor, here: slice) -> torch.Tensor:
        ids = self.ids[here]
        return self.divergence.value(self.log_probs[here].clone(), _outcomes(log_q, ids, log_q))

    def slope(self, log_q: torch.Tensor, here: slice) -> torch.Tensor:
        ids = self.ids[here]
        others = torch.empty_like(log_q)
        slope = self.divergence.slope(self.log_probs[here].clone(), _outcomes(log_q, ids, others))
        # Among the other tokens, each bears its share of what they do together.
        spread = functional.softmax(others, dim=-1).mul_(slope[:, -1:])
        return spread.scatter_(1, ids, slope[:, :-1])


def _outcomes(log_q: torch.Tensor, ids: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities of `ids` and of the rest [n, k + 1]; `others` becomes `log_q` without `ids`."""
    chosen = log_q.gather(1, ids)
    others.copy_(log_q).scatter_(1, ids, -torch.inf)
    return torch.cat([chosen, others.logsumexp(-1, keepdim=True)], dim=1)


def top_of(logits: torch.Tensor, temperature: float, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `TopTargets` holds of a teacher's logits [n, vocabulary], whose memory is used up."""
    log_p = softened(logits, temperature)
    ids = log_p.topk(k, dim=-1).indices
    return ids, _outcomes(log_p, ids, log_p)


def softened(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return log-probabilities in fp32; the logits' memory is used up."""
    logits = logits.float()
    return functional.log_softmax(logits if temperature == 1 else logits.div_(temperature), dim=-1)


@dataclass(frozen=True)
class Mix:
    """The loss of a supervised position."""

    soft: SoftTargets | None
    """None: the reference alone."""
    weight: float
    """Of the divergence, before T^2."""
    temperature: float
    cross_entropy: float
    chunk_bytes: int

    def num_rows(self, vocabulary: int) -> int:
        """Return how many positions a chunk has."""
        rows = max(1, self.chunk_bytes // (LOGIT_BYTES * vocabulary))
        return rows - rows % ROWS_TILE if rows > ROWS_TILE else rows

    def value(self, logits: torch.Tensor, wanted: torch.Tensor, here: slice) -> torch.Tensor:
        """Return the summed loss of a chunk; the logits' memory is used up."""
        loss = logits.new_zeros((), dtype=torch.float32)
        logits = logits.float()
        if self.cross_entropy:
            hard = functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
            loss += self.cross_entropy * hard
        if self.soft is not None and self.weight:
            logits = softened(logits, self.temperature)
            softs = self.soft.value(logits, here) * (wanted != IGNORED)
            loss += self.weight * self.temperature**2 * softs.sum()
        return loss

    def slope(self, logits: torch.Tensor, wanted: torch.Tensor, here: slice, scale: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the scaled loss by the logits, in their format; their memory is used up."""
        dtype, slope = logits.dtype, None
        logits = softened(logits, self.temperature)
        if self.soft is not None and self.weight:
            # T^2 of the loss over T of the logits.
            slope = self.soft.slope(logits, here).mul_(self.weight * self.temperature)
        if self.cross_entropy or slope is None:
            hard = functional.softmax(logits.mul_(self.temperature), dim=-1).mul_(self.cross_entropy)
            less = hard.new_full((len(wanted), 1), -self.cross_entropy)
            hard.scatter_add_(1, wanted.clamp(min=0)[:, None], less)
            slope = hard if slope is None else slope.add_(hard)
            del hard
        del logits
        return slope.mul_((scale * (wanted != IGNORED))[:, None]).to(dtype)


def chunked(
    rows: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, mix: Mix, dtype: torch.dtype
) -> torch.Tensor:
    """Return the summed loss of a student's hidden states [n, hidden] with its head's weight and tokens [n]."""
    loss: torch.Tensor = _Chunked.apply(rows, weight, tokens, mix, dtype)  # type: ignore[no-untyped-call]
    return loss


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, mix: Mix, dtype: torch.dtype
    ) -> torch.Tensor:
        ctx.save_for_backward(rows, weight, tokens)
        ctx.mix, ctx.dtype = mix, dtype
        matrix, size = weight.to(dtype), mix.num_rows(weight.shape[0])
        loss = rows.new_zeros((), dtype=torch.float32)
        for start in range(0, len(rows), size):
            here = slice(start, start + size)
            loss += mix.value(functional.linear(rows[here].to(dtype), matrix), tokens[here], here)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None]:
        rows, weight, tokens = ctx.saved_tensors
        mix: Mix = ctx.mix
        matrix, size = weight.to(ctx.dtype), mix.num_rows(weight.shape[0])
        wants_rows, wants_weight = ctx.needs_input_grad[:2]
        of_rows = torch.empty_like(rows) if wants_rows else None
        of_weight = torch.zeros_like(weight) if wants_weight else None
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, len(rows), size):
                here = slice(start, start + size)
                part = rows[here].to(ctx.dtype)
                slope = mix.slope(functional.linear(part, matrix), tokens[here], here, scale)
                if of_rows is not None:
                    of_rows[here] = slope @ matrix
                if of_weight is not None:
                    of_weight.add_(slope.t() @ part)
                del slope  # before the next chunk is made
        return of_rows, of_weight, None, None, None
