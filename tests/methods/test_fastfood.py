"""The Walsh-Hadamard transform against scipy's matrix, and Fastfood against its definition, its norm and its adjoint."""

import pytest
import torch
from scipy.linalg import hadamard

from methods.maths import fastfood
from methods.maths.fastfood import Fastfood, power_of_two, walsh_hadamard


def draw(size: int, d: int, seed: int = 0) -> Fastfood:
    return Fastfood.draw(size, d, torch.Generator().manual_seed(seed), "cpu")


def matrix(project: Fastfood, d: int) -> torch.Tensor:
    """P (size, d), column by column."""
    return torch.stack([project(column) for column in torch.eye(d, dtype=torch.float64)], dim=1)


@pytest.mark.parametrize("length", [1, 2, 8, 64, 128, 2048])
def test_the_transform_is_scipys_matrix(length: int) -> None:
    x = torch.randn(3, 2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    assert torch.allclose(walsh_hadamard(x), x @ torch.from_numpy(hadamard(length)).double(), atol=1e-10)


def test_the_transform_needs_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="not 12"):
        walsh_hadamard(torch.zeros(12))
    assert [power_of_two(n) for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]


def test_the_transform_has_its_exact_adjoint() -> None:
    x = torch.randn(128, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(walsh_hadamard, (x,))


@pytest.mark.parametrize(("size", "d"), [(100, 5), (128, 128), (7, 20), (1, 3)])
def test_fastfood_is_its_definition(size: int, d: int) -> None:
    """H G Pi H B pad(v) with scipy's H of the whole length, and the norm in front."""
    project, length = draw(size, d), power_of_two(max(size, d))
    h = torch.from_numpy(hadamard(length)).double()
    columns = (h[:, :d] * project.signs)[: power_of_two(d)][project.order.long()]  # rows of H B repeat after d' of them
    dense = h @ (project.gauss.double()[:, None] * columns)
    scale = (length * project.gauss.double().square().sum() * size / length).sqrt()
    assert torch.allclose(matrix(project, d), dense[:size] / scale, atol=1e-6)


def test_the_permutation_is_one_of_the_whole_length() -> None:
    """L = 256 rows repeat after d' = 8, so each of 8 stands 32 times."""
    assert torch.equal(draw(200, 5).order.bincount(), torch.full((8,), 32))


@pytest.mark.parametrize(("size", "d"), [(300, 20), (1000, 1000), (10, 50)])
def test_the_mean_square_length_is_kept(size: int, d: int) -> None:
    v = torch.randn(d, generator=torch.Generator().manual_seed(1))
    lengths = torch.stack([draw(size, d, seed)(v).square().sum() / v.square().sum() for seed in range(400)])
    assert lengths.mean().item() == pytest.approx(1.0, rel=0.05)


def test_linear_and_with_the_transpose_as_gradient() -> None:
    project, d = draw(90, 12), 12
    v, w = torch.randn(2, d, dtype=torch.float64)
    assert torch.allclose(project(2 * v - 3 * w), 2 * project(v) - 3 * project(w), atol=1e-10)
    slope = torch.randn(90, dtype=torch.float64)
    v.requires_grad_()
    (project(v) @ slope).backward()
    assert torch.allclose(v.grad, matrix(project, d).T @ slope, atol=1e-10)


def test_draws_are_seeded_and_cost_nothing_on_meta() -> None:
    v = torch.randn(9)
    assert torch.equal(draw(50, 9)(v), draw(50, 9)(v)) and not torch.equal(draw(50, 9)(v), draw(50, 9, seed=1)(v))
    assert Fastfood.draw(50, 9, torch.Generator(), "meta").gauss.is_meta


def test_a_pass_without_gradients_does_not_spoil_later_ones() -> None:
    fastfood._hadamard.cache_clear()
    with torch.inference_mode():
        walsh_hadamard(torch.ones(8))
    x = torch.randn(8, requires_grad=True)
    (walsh_hadamard(x * x) * torch.arange(8.0)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
