"""Learned choices of N:M patterns: candidates, relaxed samples and their limits, priors."""

import math

import pytest
import torch
from torch import Tensor

from methods.maths.choices import candidates, gumbel, hard_mask, leaning, soft_mask
from methods.maths.masks import nm_mask


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_candidates_of_2_4_in_the_order_of_the_paper() -> None:
    rows = ["".join(str(int(bit)) for bit in row) for row in candidates(2, 4).tolist()]
    assert rows == ["1100", "1010", "1001", "0110", "0101", "0011"]


@pytest.mark.parametrize(("n", "m"), [(1, 4), (4, 8), (1, 16)])
def test_candidates_are_all_patterns_once(n: int, m: int) -> None:
    patterns = candidates(n, m)
    assert patterns.shape == (math.comb(m, n), m) and (patterns.sum(1) == n).all() and len(patterns.unique(dim=0)) == len(patterns)


def test_gumbel_noise_has_its_mean_and_variance() -> None:
    """Euler's constant and pi^2 / 6."""
    torch.manual_seed(0)
    noise = gumbel(torch.empty(200_000))
    assert noise.mean() == pytest.approx(0.57722, abs=0.01) and noise.var() == pytest.approx(math.pi**2 / 6, abs=0.03)


def test_soft_mask_equals_torchs_gumbel_softmax() -> None:
    logits, patterns = draw(5, 3, 6), candidates(2, 4)
    torch.manual_seed(1)
    own = soft_mask(logits, patterns, gumbel(logits), 0.7, 5.0)
    torch.manual_seed(1)
    expected = torch.nn.functional.gumbel_softmax(5.0 * logits, tau=0.7) @ patterns
    assert torch.allclose(own, expected.reshape(5, 12), atol=1e-6)
    assert torch.allclose(own.view(5, 3, 4).sum(-1), torch.full((5, 3), 2.0), atol=1e-5)


def test_a_cold_sample_is_a_pattern() -> None:
    """tau -> 0: one-hot choices, entries 0 or 1, two ones a group; that of the largest noisy logit."""
    logits, noise, patterns = draw(8, 4, 6), draw(8, 4, 6, seed=1), candidates(2, 4)
    mask = soft_mask(logits, patterns, noise, 1e-4, 1.0)
    assert torch.equal(mask, mask.round()) and (mask.view(8, 4, 4).sum(-1) == 2).all()
    assert torch.equal(mask.bool(), hard_mask(logits + noise, patterns))


@pytest.mark.parametrize("tau", [4.0, 0.05])
def test_the_mean_sample_of_equal_logits_is_one_half(tau: float) -> None:
    torch.manual_seed(0)
    logits = torch.zeros(100, 200, 6)
    mask = soft_mask(logits, candidates(2, 4), gumbel(logits), tau, 500.0)
    assert torch.allclose(mask.view(-1, 4).mean(0), torch.full((4,), 0.5), atol=0.015)


def test_gradients_of_a_sample() -> None:
    logits, noise = draw(2, 3, 6).double().requires_grad_(), draw(2, 3, 6, seed=1).double()
    assert torch.autograd.gradcheck(lambda g: soft_mask(g, candidates(2, 4).double(), noise, 1.3, 2.0), logits)


def test_hard_masks_take_the_first_of_equal_logits() -> None:
    assert hard_mask(torch.zeros(1, 1, 6), candidates(2, 4)).int().tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_a_strong_prior_is_the_mask(n: int, m: int) -> None:
    prior, patterns = nm_mask(draw(6, 16), n, m), candidates(n, m)
    logits = 0.01 * draw(6, 16 // m, len(patterns), seed=1)
    assert torch.equal(hard_mask(leaning(logits, patterns, prior, 100.0), patterns), prior)
    assert torch.equal(leaning(logits, patterns, prior, 0.0), logits)


def test_a_prior_of_2_4_adds_minus_one_zero_or_one() -> None:
    """M0 = 1100: agreement 2, 1, 1, 1, 1, 0 in the order of the candidates, minus 1, times 3 std."""
    logits = 0.01 * draw(4, 4, 6)
    prior = torch.tensor([1, 1, 0, 0]).bool().repeat(4, 4)
    moved = leaning(logits, candidates(2, 4), prior, 3.0) - logits
    assert torch.allclose(moved, (3 * logits.std() * torch.tensor([1.0, 0, 0, 0, 0, -1])).expand(4, 4, 6), atol=1e-7)
