"""SM3 on known entries against SM3 on the dense matrix."""

import torch
from torch import Tensor

from methods.maths.sm3 import momentum_scores, sm3_accumulate


def dense_step(rows: Tensor, columns: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm SM3-II with rows and columns as the cover."""
    u = torch.minimum(rows[:, None], columns[None]) + gradient**2
    return u, u.amax(1), u.amax(0)


def test_accumulators_are_those_of_the_dense_matrix_with_zeros_elsewhere() -> None:
    draws = torch.Generator().manual_seed(0)
    rows, columns = torch.zeros(6), torch.zeros(4)
    dense_rows, dense_columns = torch.zeros(6), torch.zeros(4)
    for _ in range(8):  # other entries every time, as after a reselection
        positions = torch.randperm(24, generator=draws)[:7]
        gradient = torch.randn(7, generator=draws)
        whole = torch.zeros(24).scatter(0, positions, gradient).view(6, 4)
        expected, dense_rows, dense_columns = dense_step(dense_rows, dense_columns, whole)
        u = sm3_accumulate(rows, columns, gradient, positions)
        assert torch.allclose(u, expected.flatten()[positions])
        assert torch.allclose(rows, dense_rows) and torch.allclose(columns, dense_columns)


def test_scores_bound_what_a_row_and_a_column_saw() -> None:
    rows, columns = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0, 0.5])
    assert momentum_scores(rows, columns).tolist() == [[2.0, 6.0, 1.0], [0.0, 0.0, 0.0]]
