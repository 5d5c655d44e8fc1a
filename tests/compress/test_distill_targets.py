"""The chunked loss against a teacher is the plain one, in a fixed number of bytes per logit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distilling import Living
from test_divergences import defined
from torch.nn import functional

from egobench.compress.divergences import DIVERGENCES
from egobench.compress.soft_targets import LOGIT_BYTES, Mix, TopTargets, WholeTargets, chunked, top_of

VOCABULARY, HIDDEN, OTHER, ROWS = 48, 16, 24, 13
K = 5
CHUNK = LOGIT_BYTES * VOCABULARY * 4  # four positions: the last chunk is a shorter one


class Case:
    """A student's hidden states and head, a teacher's, and tokens of which some are ignored."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        self.rows = drawn(ROWS, HIDDEN).requires_grad_()
        self.weight = (0.5 * drawn(VOCABULARY, HIDDEN)).requires_grad_()
        self.other_rows, self.other_weight = drawn(ROWS, OTHER).to(dtype), (0.5 * drawn(VOCABULARY, OTHER)).to(dtype)
        self.tokens = torch.randint(VOCABULARY, (ROWS,), generator=generator)
        self.tokens[[2, 12]] = -100

    def mix(self, divergence: str, temperature: float, cross_entropy: float, k: int | None, weight: float = 0.7) -> Mix:
        soft: Any = WholeTargets(self.other_rows, self.other_weight, temperature, DIVERGENCES[divergence])
        if k is not None:
            ids, log_probs = top_of(functional.linear(self.other_rows, self.other_weight), temperature, k)
            soft = TopTargets(ids, log_probs, DIVERGENCES[divergence])
        return Mix(soft, weight, temperature, cross_entropy, CHUNK)

    def plain(
        self, divergence: str, temperature: float, cross_entropy: float, k: int | None, weight: float = 0.7
    ) -> torch.Tensor:
        """Make the same loss with all logits, for autograd."""
        logits = functional.linear(self.rows, self.weight)
        log_p = (functional.linear(self.other_rows, self.other_weight).float() / temperature).log_softmax(-1)
        log_q = (logits / temperature).log_softmax(-1)
        if k is not None:
            ids = log_p.topk(k).indices
            log_p, log_q = (_with_rest(one, ids) for one in (log_p, log_q))
        soft = (defined(divergence, log_p, log_q) * (self.tokens != -100)).sum()
        hard = functional.cross_entropy(logits, self.tokens, ignore_index=-100, reduction="sum")
        return weight * temperature**2 * soft + cross_entropy * hard

    def gradients(self, loss: torch.Tensor, scale: float = 1.0) -> list[torch.Tensor]:
        return list(torch.autograd.grad(scale * loss, [self.rows, self.weight]))


def _with_rest(log_probs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    probs = log_probs.exp()
    chosen = probs.gather(1, ids)
    return torch.cat([chosen, probs.sum(-1, keepdim=True) - chosen.sum(-1, keepdim=True)], dim=1).log()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("cross_entropy", [0.0, 0.3])
@pytest.mark.parametrize("k", [None, K])
def test_loss_and_gradients_are_the_plain_ones(
    divergence: str, temperature: float, cross_entropy: float, k: int | None
) -> None:
    case = Case()
    expected = case.plain(divergence, temperature, cross_entropy, k)
    mix = case.mix(divergence, temperature, cross_entropy, k)
    assert mix.num_rows(VOCABULARY) == 4
    found = chunked(case.rows, case.weight, case.tokens, mix, torch.float32)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for own, other in zip(case.gradients(found, 0.25), case.gradients(expected, 0.25), strict=True):
        assert torch.allclose(own, other, atol=2e-5)


def test_the_reference_alone_is_the_cross_entropy() -> None:
    case = Case()
    mix = Mix(None, 1.0, 3.0, 0.3, CHUNK)  # a temperature is no part of it
    found = chunked(case.rows, case.weight, case.tokens, mix, torch.float32)
    expected = case.plain("jsd", 1.0, 0.3, None, weight=0.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for own, other in zip(case.gradients(found), case.gradients(expected), strict=True):
        assert torch.allclose(own, other, atol=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_rest_as_one_outcome_is_a_lower_bound_that_becomes_exact(divergence: str) -> None:
    """To put outcomes together can only hide differences, and one token is put together with none."""
    case = Case()
    whole, few, nearly_all = (
        chunked(case.rows, case.weight, case.tokens, case.mix(divergence, 1.5, 0.0, k), torch.float32).item()
        for k in (None, K, VOCABULARY - 1)
    )
    assert 0 < few < whole
    assert nearly_all == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("k", [None, K])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_live_in_the_bytes_that_a_chunk_is_given(divergence: str, k: int | None, dtype: torch.dtype) -> None:
    case = Case(dtype)
    mix = case.mix(divergence, 2.0, 0.3, k)
    weights = (torch.Size((HIDDEN, VOCABULARY)), torch.Size((OTHER, VOCABULARY)))
    with Living(VOCABULARY, weights) as living:
        chunked(case.rows, case.weight, case.tokens, mix, dtype).backward()
    assert CHUNK / 2 < living.most_bytes <= CHUNK


def test_plain_torch_takes_many_times_as_much_per_logit() -> None:
    case = Case()
    with Living(VOCABULARY, (torch.Size((HIDDEN, VOCABULARY)), torch.Size((OTHER, VOCABULARY)))) as living:
        case.plain("jsd", 2.0, 0.3, None).backward()
    per_logit = living.most_bytes / (ROWS * VOCABULARY)
    assert per_logit > 3 * LOGIT_BYTES, per_logit


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_half_precision_is_rounded_products_and_an_exact_softmax(divergence: str) -> None:
    case = Case(torch.bfloat16)
    mix = case.mix(divergence, 1.0, 0.3, None)
    found = chunked(case.rows, case.weight, case.tokens, mix, torch.bfloat16)
    expected = case.plain(divergence, 1.0, 0.3, None)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-2)
    for own, other in zip(case.gradients(found), case.gradients(expected), strict=True):
        assert own.dtype == torch.float32
        assert (own - other).norm() < 2e-2 * other.norm()


def test_small_slopes_are_scaled_before_they_are_rounded() -> None:
    """A student that is nearly its teacher: slopes too small for fp16, unless they are scaled."""
    case = Case()
    with torch.no_grad():
        case.rows *= 1e-3
    soft = WholeTargets(case.rows.detach() * 1.001, case.weight.detach(), 1.0, DIVERGENCES["forward_kl"])
    scale = 2.0**16
    found, expected = (
        case.gradients(chunked(case.rows, case.weight, case.tokens, Mix(soft, 1.0, 1.0, 0.0, CHUNK), dtype), scale)[1]
        for dtype in (torch.float16, torch.float32)
    )
    assert ((found == 0) == (expected == 0)).float().mean() > 0.9


def test_nothing_to_learn_is_no_loss_and_no_slope() -> None:
    case = Case()
    case.tokens.fill_(-100)
    found = chunked(case.rows, case.weight, case.tokens, case.mix("jsd", 1.0, 0.5, None), torch.float32)
    assert found.item() == 0
    assert all(one.abs().max() == 0 for one in case.gradients(found))
    empty = chunked(case.rows[:0], case.weight, case.tokens[:0], case.mix("jsd", 1.0, 0.5, K), torch.float32)
    assert empty.item() == 0 and case.gradients(empty + case.rows.sum() * 0)[1].abs().max() == 0


def test_a_frozen_head_gets_no_gradient() -> None:
    case = Case()
    case.weight.requires_grad_(False)
    found = chunked(case.rows, case.weight, case.tokens, case.mix("jsd", 1.0, 0.5, None), torch.float32)
    (own,) = torch.autograd.grad(found, [case.rows])
    assert own.abs().max() > 0
