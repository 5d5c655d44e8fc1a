"""How far a student's distribution q is from its teacher's p: values and gradients in closed form.

All take log-probabilities [n, outcomes] in fp32, and work in the memory that they are given: with two models and a
vocabulary of 150,000 tokens, it is the copies that fill a GPU. Beside its arguments no function makes more than one
tensor of their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

NUM_COPIES: Final = 3
"""Tensors [n, outcomes] in fp32 that live at once, the arguments among them."""
LOG_2: Final = math.log(2.0)


@dataclass(frozen=True)
class Divergence:
    """One value of `divergence:`."""

    value: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """(log p, log q) -> [n]; both are used up."""
    slope: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """(log p, log q) -> gradient of the value by the logits of q [n, outcomes]; log p is used up, log q is left."""


def _forward_value(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    gap = log_q.neg_().add_(log_p)
    return log_p.exp_().mul_(gap).sum(-1)


def _forward_slope(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return log_q.exp().sub_(log_p.exp_())


def _reverse_value(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return _forward_value(log_q, log_p)


def _reverse_slope(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return _through_softmax(log_p.neg_().add_(log_q), log_q)


def _jsd_value(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    # With m = (p + q) / 2: half of the sum of m (p/m log p/m + q/m log q/m).
    log_m = torch.logaddexp(log_p, log_q).sub_(LOG_2)
    of_p = log_p.sub_(log_m).exp_()
    of_q = log_q.sub_(log_m).exp_()
    terms = of_p.xlogy_(of_p).add_(of_q.xlogy_(of_q))
    return terms.mul_(log_m.exp_()).sum(-1).mul_(0.5)


def _jsd_slope(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    log_m = torch.logaddexp(log_p, log_q, out=log_p).sub_(LOG_2)
    return _through_softmax(log_m.neg_().add_(log_q).mul_(0.5), log_q)


def _through_softmax(by_q: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Turn a gradient by q, up to a constant, into the one by its logits: q * (g - sum of q g)."""
    q = log_q.exp()
    weighted = by_q.mul_(q)
    return weighted.sub_(q.mul_(weighted.sum(-1, keepdim=True)))


DIVERGENCES: Final[dict[str, Divergence]] = {
    "forward_kl": Divergence(_forward_value, _forward_slope),
    "reverse_kl": Divergence(_reverse_value, _reverse_slope),
    "jsd": Divergence(_jsd_value, _jsd_slope),
}
"""The names of `spec/distillation.py`."""
