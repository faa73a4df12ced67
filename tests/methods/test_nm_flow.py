"""N:M masks that come on slowly: stages, decay factors, and the map's values and gradients against dense autograd."""

import math

import pytest
import torch
from torch import Tensor

from methods.maths.nm_flow import (
    FlowLinear,
    decay_gradient,
    exponential_beta,
    geometric,
    linear_beta,
    magnitude_mask,
    shown,
    stage,
    stepwise,
)
from methods.spec import Diverged


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("n", "m", "expected"),
    [
        (1, 8, [(7, 8), (4, 8), (2, 8), (1, 8)]),
        (1, 16, [(15, 16), (8, 16), (4, 16), (2, 16), (1, 16)]),
        (2, 4, [(3, 4), (2, 4)]),
        (2, 8, [(7, 8), (4, 8), (2, 8)]),
    ],
)
def test_stepwise_patterns(n: int, m: int, expected: list) -> None:
    assert stepwise(n, m) == expected and len(expected) == math.log2(m / n) + 1


def test_patterns_that_halving_does_not_reach_are_refused() -> None:
    with pytest.raises(ValueError, match="no power of two"):
        stepwise(1, 6)


def test_geometric_patterns_keep_the_density_and_shrink_the_group() -> None:
    assert geometric(1, 4) == [(8, 32), (4, 16), (2, 8), (1, 4)]


def test_stages_are_equally_long() -> None:
    """40 steps in 4 stages: 10 each; 7 steps: 2, 2, 2 and 1."""
    assert [stage(i, 40, 4) for i in (0, 9, 10, 19, 20, 29, 30, 39)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [stage(i, 7, 4) for i in range(7)] == [0, 0, 1, 1, 2, 2, 3]


def test_decay_factors() -> None:
    """At t = 0 nothing is masked yet; k = 2e-4 of the paper's code after 1000 and 10000 steps."""
    assert linear_beta(2e-4, 0) == exponential_beta(2e-4, 0) == 1
    assert linear_beta(2e-4, 1000) == pytest.approx(0.8) and linear_beta(2e-4, 10_000) == 0
    assert exponential_beta(2e-4, 10_000) == pytest.approx(0.1353353, abs=1e-7)


def by_sorting(weight: Tensor, n: int, m: int) -> Tensor:
    """The mask as in the paper's code: argsort of each group of consecutive entries of the flattened weight, row by row."""
    groups = weight.abs().reshape(-1, m)
    mask = torch.ones_like(groups)
    return mask.scatter(1, groups.argsort(1)[:, : m - n], 0.0).reshape(weight.shape)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 8), (7, 8), (8, 16)])
def test_mask_keeps_the_largest_of_each_group_of_inputs(n: int, m: int) -> None:
    weight = draw(6, 16)
    mask = magnitude_mask(weight, n, m)
    assert torch.equal(mask.double(), by_sorting(weight, n, m))
    assert (mask.view(6, -1, m).sum(-1) == n).all()


def test_a_nan_is_divergence() -> None:
    with pytest.raises(Diverged):
        magnitude_mask(torch.tensor([[1.0, torch.nan]]), 1, 2)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_map_equals_dense_autograd(beta: float, scaled: bool) -> None:
    """Straight-through: dL/dW = dL/dW_f; scaled: the plain derivative of W * (M + (1 - M) beta)."""
    results = []
    for own in (True, False):
        x, weight, bias = (t.requires_grad_() for t in (draw(2, 3, 16), draw(5, 16, seed=1), draw(5, seed=2)))
        factor = by_sorting(weight.detach(), 2, 4)
        factor = factor + (1 - factor) * beta
        if own:
            y = FlowLinear.apply(x, weight, bias, magnitude_mask(weight.detach(), 2, 4), beta, scaled)
        else:
            masked = weight * factor if scaled else weight + (weight * factor - weight).detach()
            y = x @ masked.T + bias
        (y * draw(2, 3, 5, seed=3)).sum().backward()
        results.append((y.detach(), x.grad, weight.grad, bias.grad))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_hard_weights_are_exact_zeros_and_soft_ones_at_one_are_the_weight() -> None:
    weight = draw(4, 8)
    mask = magnitude_mask(weight, 1, 4)
    assert (shown(weight, mask, 0.0) == 0).sum() == 24 and torch.equal(shown(weight, mask, 1.0), weight)


def test_sr_ste_gradient_is_the_derivative_of_half_lambda_times_the_squares_of_pruned_weights() -> None:
    weight = draw(4, 8).requires_grad_()
    mask = magnitude_mask(weight.detach(), 2, 4)
    (0.5 * 2e-4 * (weight * ~mask).square().sum()).backward()
    assert torch.allclose(decay_gradient(weight.detach(), mask, 2e-4), weight.grad, atol=1e-15)
