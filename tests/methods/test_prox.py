"""Proximal operators against torch, against the minimisation that defines them, and NaN."""

import pytest
import torch

from methods.maths.prox import hard_soft_threshold, soft_threshold

V = torch.cat([torch.linspace(-1, 1, 41), torch.randn(1000, generator=torch.Generator().manual_seed(0))])


@pytest.mark.parametrize("xi", [0.0, 0.1, 0.37, 5.0])
def test_thresholds(xi: float) -> None:
    soft = soft_threshold(V, xi)
    assert torch.allclose(soft, torch.nn.functional.softshrink(V, xi), atol=1e-7)
    assert torch.allclose(soft, V.sign() * (V.abs() - xi).relu(), atol=1e-7) and (soft[V.abs() <= xi] == 0).all()
    hard = hard_soft_threshold(V, xi)
    small = V.abs() < 2 * xi
    assert (hard[small] == 0).all() and torch.equal(hard[~small], soft[~small])
    assert (hard[~small & (V != 0)].abs() >= xi * (1 - 1e-6)).all()


def test_soft_threshold_minimises_its_objective() -> None:
    """argmin_u (u - v)^2 / 2 + xi |u| on a fine grid."""
    grid = torch.linspace(-2, 2, 40_001, dtype=torch.float64)
    for v in (-1.3, -0.2, 0.0, 0.31, 0.9):
        best = grid[((grid - v).square() / 2 + 0.3 * grid.abs()).argmin()]
        assert soft_threshold(torch.tensor(v, dtype=torch.float64), 0.3).item() == pytest.approx(best.item(), abs=1e-4)


@pytest.mark.parametrize("operator", [soft_threshold, hard_soft_threshold])
def test_a_nan_is_seen(operator: object) -> None:
    assert operator(torch.tensor([float("nan"), 1.0]), 0.1).isnan().tolist() == [True, False]
