"""The LDU factors against scipy and against the matrix, for tall, wide and singular ones."""

import numpy as np
import pytest
import torch
from scipy.linalg import lu

from methods.maths.ldu import ldu


def draw(m: int, n: int) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(m + n))


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_factors_are_scipys(shape: tuple[int, int]) -> None:
    weight = draw(*shape)
    lower, d, upper = ldu(weight)
    p, wanted_lower, u = lu(weight.double().numpy())
    assert np.allclose(lower, p @ wanted_lower, atol=1e-6)
    assert np.allclose(d, u.diagonal(), atol=1e-5)
    assert np.allclose(d[:, None] * upper, u, atol=1e-5)
    assert torch.equal(upper.diagonal(), torch.ones(min(shape)))
    assert torch.allclose(lower * d @ upper, weight, atol=1e-5)
    assert lower.abs().max() <= 1


def test_a_singular_matrix_stays_exact_and_finite() -> None:
    weight = torch.zeros(5, 5)
    weight[:, 3:] = draw(5, 2)
    rank_two = draw(5, 2) @ draw(2, 5)
    for singular in (weight, rank_two, torch.zeros(3, 4)):
        lower, d, upper = ldu(singular)
        assert all(torch.isfinite(factor).all() for factor in (lower, d, upper))
        assert upper.abs().max() < 1e6
        assert torch.allclose(lower * d @ upper, singular, atol=1e-6)


def test_on_the_meta_device_there_are_shapes_alone() -> None:
    assert [tuple(f.shape) for f in ldu(torch.empty(7, 3, device="meta"))] == [(7, 3), (3,), (3, 3)]
