"""Rank reduction against torch's SVD and matrices of known rank."""

import pytest
import torch
from torch import Tensor

from methods.maths.rank_filter import largest_positions, rank_filtered


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_exact_form_is_torchs_truncation(shape: tuple[int, int]) -> None:
    weight = draw(*shape)
    u, s, vt = torch.linalg.svd(weight)
    assert torch.allclose(rank_filtered(weight, 3), u[:, :3] @ s[:3].diag() @ vt[:3], atol=1e-4)
    half = rank_filtered(weight.bfloat16(), 3)
    assert half.dtype == torch.float32 and torch.allclose(half, rank_filtered(weight.bfloat16().float(), 3))


@pytest.mark.parametrize("iterations", [None, 1])
def test_a_matrix_of_that_rank_is_unchanged(iterations: int | None) -> None:
    weight = draw(20, 3) @ draw(3, 30, seed=1)
    assert torch.allclose(rank_filtered(weight, 3, iterations, torch.Generator().manual_seed(5)), weight, atol=1e-4)


def test_randomised_form_nears_the_exact_one_and_has_the_rank() -> None:
    left, right = torch.linalg.qr(draw(40, 40)).Q, torch.linalg.qr(draw(60, 40, seed=1)).Q.T
    weight = left @ (0.7 ** torch.arange(40.0)).diag() @ right
    exact = rank_filtered(weight, 4)
    errors = [(rank_filtered(weight, 4, p, torch.Generator().manual_seed(2)) - exact).norm() / exact.norm() for p in (0, 2)]
    assert errors[1] < 1e-2 and errors[1] < errors[0]
    assert torch.linalg.matrix_rank(rank_filtered(weight, 4, 2, torch.Generator().manual_seed(2))) == 4
    again = rank_filtered(weight, 4, 2, torch.Generator().manual_seed(2))
    assert torch.equal(again, rank_filtered(weight, 4, 2, torch.Generator().manual_seed(2)))


def test_positions_are_the_largest_ascending() -> None:
    scores = torch.tensor([[1.0, 5.0, 3.0], [5.0, 0.0, 4.0]])
    assert largest_positions(scores, 3).tolist() == [1, 3, 5]
    assert largest_positions(torch.ones(2, 3), 4).tolist() == [0, 1, 2, 3]
