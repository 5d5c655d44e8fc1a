"""Values and gradients in closed form are those of the definitions."""

from __future__ import annotations

import math

import pytest
import torch

from egobench.compress.divergences import DIVERGENCES


def defined(name: str, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return the divergence as textbooks write it."""

    def kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one.exp() * (one - other)).sum(-1)

    if name == "jsd":
        log_m = ((log_p.exp() + log_q.exp()) / 2).log()
        return (kl(log_p, log_m) + kl(log_q, log_m)) / 2
    return kl(log_p, log_q) if name == "forward_kl" else kl(log_q, log_p)


def drawn(seed: int, spread: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(7, 11, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_values_and_slopes(name: str) -> None:
    log_p, logits = drawn(0).log_softmax(-1), drawn(1).requires_grad_()
    log_q = logits.log_softmax(-1)
    value = defined(name, log_p, log_q)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    log_q = log_q.detach()
    kept = log_q.clone()
    assert torch.allclose(DIVERGENCES[name].slope(log_p.clone(), log_q), slope, atol=1e-12)
    assert torch.equal(log_q, kept)  # the cross-entropy is made from it afterwards
    assert torch.allclose(DIVERGENCES[name].value(log_p.clone(), log_q), value, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_nothing_is_apart_from_itself(name: str) -> None:
    log_p = drawn(2).float().log_softmax(-1)
    assert DIVERGENCES[name].value(log_p.clone(), log_p.clone()).abs().max() < 1e-6
    assert DIVERGENCES[name].slope(log_p.clone(), log_p.clone()).abs().max() < 1e-6


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_token_that_is_out_of_the_question_does_no_harm(name: str) -> None:
    """Probabilities of 0 in fp32 on either side."""
    log_p, log_q = drawn(3, 200).float().log_softmax(-1), drawn(4, 200).float().log_softmax(-1)
    assert (log_p.exp() == 0).any() and (log_q.exp() == 0).any()
    assert DIVERGENCES[name].slope(log_p.clone(), log_q.clone()).isfinite().all()
    assert DIVERGENCES[name].value(log_p.clone(), log_q.clone()).isfinite().all()


def test_jsd_is_symmetric_and_bounded() -> None:
    value = DIVERGENCES["jsd"].value
    one, other = drawn(5, 50).log_softmax(-1), drawn(6, 50).log_softmax(-1)
    ahead, back = value(one.clone(), other.clone()), value(other.clone(), one.clone())
    assert torch.allclose(ahead, back, atol=1e-12)
    assert ahead.min() > 0 and ahead.max() <= math.log(2) + 1e-12


def test_the_two_directions_punish_different_things() -> None:
    """A student on one of the teacher's two modes: reverse KL minds little, forward KL much."""
    log_p = torch.tensor([[0.5, 0.5, 1e-6]]).log()
    log_q = torch.tensor([[0.999, 1e-6, 1e-3]]).log()
    forward = DIVERGENCES["forward_kl"].value(log_p.clone(), log_q.clone())
    assert forward > 4 * DIVERGENCES["reverse_kl"].value(log_p.clone(), log_q.clone())
