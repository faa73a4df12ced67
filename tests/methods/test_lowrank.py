"""Truncated SVD: optimal by Eckart and Young, orthonormal, signs that do not depend on the sign of the input's factors."""

import pytest
import scipy.linalg
import torch

from methods.maths.lowrank import energy_rank, truncated_svd


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_it_is_the_best_approximation_of_its_rank(shape: tuple[int, int], rank: int) -> None:
    weight = draw(*shape)
    u, s, vt = truncated_svd(weight, rank)
    values = torch.from_numpy(scipy.linalg.svdvals(weight.double().numpy())).float()
    assert torch.allclose(s, values[:rank], atol=1e-5)
    assert torch.allclose(u.T @ u, torch.eye(rank), atol=1e-5) and torch.allclose(vt @ vt.T, torch.eye(rank), atol=1e-5)
    error = (weight - u * s @ vt).square().sum()
    assert error.item() == pytest.approx(values[rank:].square().sum().item(), abs=1e-4)


def test_signs_are_those_of_the_largest_entry_of_u_and_of_the_pair() -> None:
    """u and v turn together: for a matrix of rank one, +-u give one answer."""
    u, v = torch.tensor([0.6, -0.8]), torch.tensor([-1.0, 0.0, 0.0])
    for sign in (1, -1):
        got = truncated_svd((3 * (sign * u)[:, None]) @ (sign * v)[None], 1)
        assert torch.allclose(got.u[:, 0], -u) and torch.allclose(got.vt[0], -v) and got.s.item() == pytest.approx(3)
    negated = truncated_svd(-draw(5, 9), 3)
    assert torch.allclose(negated.u, truncated_svd(draw(5, 9), 3).u, atol=1e-5)
    assert all(column[column.abs().argmax()] > 0 for column in negated.u.T)


def test_half_precision_is_computed_in_float32_and_the_rank_is_at_most_the_smaller_side() -> None:
    weight = draw(4, 6).bfloat16()
    u, s, vt = truncated_svd(weight, 99)
    assert u.dtype == s.dtype == vt.dtype == torch.float32
    assert (u.shape, s.shape, vt.shape) == ((4, 4), (4,), (4, 6))
    assert torch.allclose(u * s @ vt, weight.float(), atol=1e-5)


def test_batches_of_matrices_and_the_meta_device() -> None:
    stack = draw(3, 4, 6)
    u, s, vt = truncated_svd(stack, 2)
    for i in range(3):
        one = truncated_svd(stack[i], 2)
        assert torch.allclose(u[i] * s[i] @ vt[i], one.u * one.s @ one.vt, atol=1e-5)
    meta = truncated_svd(torch.empty(70, 40, device="meta"), 50)
    assert meta.u.is_meta and [tuple(t.shape) for t in meta] == [(70, 40), (40,), (40, 40)]


def test_energy_counts_squares_or_values() -> None:
    s = torch.tensor([3.0, 2.0, 1.0])  # squares 9, 4, 1 of 14; values 3, 2, 1 of 6
    assert [energy_rank(s, share, 2) for share in (0.5, 9 / 14, 0.65, 13 / 14, 0.93, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert [energy_rank(s, share, 1) for share in (0.5, 0.51, 5 / 6, 0.9)] == [1, 2, 2, 3]
    assert energy_rank(torch.tensor([1.0, 0.0]), 1.0, 2) == 1 and energy_rank(torch.zeros(3), 0.9, 2) == 1
