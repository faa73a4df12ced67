"""Low-rank changes under a mask: gradients against autograd, nothing kept for them, and reconstruction against least squares."""

import pytest
import torch
from torch import Tensor

from methods.maths.hadamard_lora import HadamardLinear, effective, reconstruct
from methods.maths.statistics import output_error


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, mask, b, a."""
    mask = drawn(6, 8, seed=9) > 0
    return drawn(2, 3, 8), drawn(6, 8, seed=1) * mask, drawn(6, seed=2), mask, drawn(6, 2, seed=3), drawn(2, 8, seed=4)


@pytest.mark.parametrize("masked", [True, False])
def test_values_and_gradients_are_those_of_autograd(masked: bool) -> None:
    x, weight, bias, mask, b, a = case()
    given = [t.requires_grad_() for t in (x, bias, b, a)]
    changed = weight + 0.7 * mask * (b @ a) if masked else weight * (b @ a)
    expected = x @ changed.T + bias
    y = HadamardLinear.apply(x, weight, bias, mask if masked else None, 0.7, b, a)
    assert torch.allclose(y, expected, atol=1e-12)
    up = drawn(2, 3, 6, seed=5)
    for mine, other in zip(torch.autograd.grad(y, given, up), torch.autograd.grad(expected, given, up), strict=True):
        assert torch.allclose(mine, other, atol=1e-12)


def test_no_matrix_of_the_weights_size_is_kept() -> None:
    """Saved: x, the weight, the mask and the factors themselves, no copy."""
    x, weight, bias, mask, b, a = case()
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.untyped_storage().data_ptr()) or t, lambda t: t):
        HadamardLinear.apply(x, weight, bias, mask, 0.7, b.requires_grad_(), a.requires_grad_())
    assert set(saved) <= {t.untyped_storage().data_ptr() for t in (x, weight, mask, b, a)}


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dense and pruned weights (6, 8), mask, X (40, 8) with correlated columns."""
    dense, mask = drawn(6, 8, seed=1), drawn(6, 8, seed=9) > 0
    x = drawn(40, 8) @ (torch.eye(8, dtype=torch.float64) + 0.3 * drawn(8, 8, seed=6))
    return dense, dense * mask, mask, x


def least_squares(dense: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """Row by row: the kept entries that explain the dense outputs best."""
    found = torch.zeros_like(dense)
    for row, kept in enumerate(mask):
        found[row, kept] = torch.linalg.lstsq(x[:, kept], (x @ dense[row])[:, None]).solution[:, 0]
    return found


def test_reconstruction_of_full_rank_reaches_least_squares_on_the_kept_entries() -> None:
    dense, pruned, mask, x = problem()
    b, a = torch.zeros(6, 6, dtype=torch.float64), torch.eye(6, 8, dtype=torch.float64) + 0.3 * drawn(6, 8, seed=7)
    found, before, after = reconstruct(dense, pruned, mask, 1.0, b, a, x.T @ x, 1000, 0.05)
    best = least_squares(dense, mask, x)
    size = (x @ dense.T).square().sum()
    least = float((x @ (best - dense).T).square().sum() / size)
    assert before == pytest.approx(float((x @ (pruned - dense).T).square().sum() / size))
    assert least * (1 - 1e-9) <= after <= least * (1 + 1e-3) and least < 0.8 * before
    assert (found - best).abs().max() < 0.02 * best.abs().max()
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize("masked", [True, False])
def test_reconstruction_of_low_rank_lies_between_the_pruned_weight_and_least_squares(masked: bool) -> None:
    dense, pruned, mask, x = problem()
    if masked:
        b, a = torch.zeros(6, 2, dtype=torch.float64), drawn(2, 8, seed=7)
    else:
        b, a = torch.full((6, 2), 0.5**0.5, dtype=torch.float64), torch.full((2, 8), 0.5**0.5, dtype=torch.float64)
    found, before, after = reconstruct(dense, pruned, mask if masked else None, 1.0, b, a, x.T @ x, 300, 0.02)
    least = output_error(least_squares(dense, mask, x) - dense, x.T @ x) / output_error(dense, x.T @ x)
    assert least < after < 0.9 * before
    assert after == pytest.approx(output_error(found - dense, x.T @ x) / output_error(dense, x.T @ x))
    assert (found[~mask] == 0).all()


def test_a_rate_that_diverges_leaves_the_pruned_weight() -> None:
    dense, pruned, mask, x = problem()
    b, a = torch.zeros(6, 2, dtype=torch.float64), drawn(2, 8, seed=7)
    found, before, after = reconstruct(dense, pruned, mask, 1.0, b, a, x.T @ x, 5, 100.0)
    assert torch.equal(found, pruned) and before == after


def test_effective_is_the_formula_in_float32_for_half_precision() -> None:
    _, weight, _, mask, b, a = case()
    half = weight.bfloat16()
    out = effective(half, mask, 0.5, b.float(), a.float())
    assert out.dtype == torch.float32
    assert torch.allclose(out, half.float() + 0.5 * mask * (b @ a).float(), atol=1e-6)
