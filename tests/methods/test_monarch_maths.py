"""Monarch matrices: the product, its dense form, and the closed-form projection with its error."""

import pytest
import torch
from torch import Tensor

from methods.maths.monarch import Shapes, dense, factor_shapes, multiply, project

SHAPES = {
    "square": ((4, 4, 4), (4, 4, 4)),
    "square, slices of rank 2": ((2, 4, 4), (2, 4, 4)),
    "wider": ((4, 4, 4), (4, 6, 4)),
    "narrower": ((4, 2, 5), (4, 2, 2)),
    "blocks do not divide the width": ((4, 6, 6), (4, 6, 6)),
    "fewer than blocks": ((4, 3, 5), (4, 3, 3)),
    "other numbers of blocks": ((3, 4, 4), (4, 3, 3)),
    "long and flat": ((2, 9, 9), (3, 5, 6)),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def by_loops(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """The product as the definition says, index by index."""
    (k, q, n), (j, m, terms) = w1.shape, w2.shape
    u = [sum(w1[a, i, p] * x[a * n + p] for p in range(n)) for a in range(k) for i in range(q)]
    y = torch.zeros(j * m)
    for b in range(j):
        for s in range(m):
            y[s * j + b] = sum(w2[b, s, r] * u[r * j + b] for r in range(terms))
    return y


def slices(weight: Tensor, shapes: Shapes) -> list[tuple[Tensor, int]]:
    """Every slice (s, p) and how many terms it has, counted one by one."""
    (k, q, p), (j, _, terms) = shapes
    counts = {(a, b): sum(a * q <= r * j + b < (a + 1) * q for r in range(terms)) for a in range(k) for b in range(j)}
    return [(weight[b::j, a * p : (a + 1) * p], n) for (a, b), n in counts.items()]


@pytest.mark.parametrize("name", SHAPES)
def test_the_product_is_the_definition_and_its_dense_form(name: str) -> None:
    first, second = SHAPES[name]
    w1, w2, x = draw(*first), draw(*second), draw(2, 3, first[0] * first[2])
    y = multiply(x, w1, w2)
    assert torch.allclose(y[1, 2], by_loops(x[1, 2], w1, w2), atol=1e-5)
    assert torch.allclose(y, torch.nn.functional.linear(x, dense(w1, w2)), atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_a_monarch_matrix_is_its_own_projection(name: str) -> None:
    first, second = SHAPES[name]
    weight = dense(draw(*first), draw(*second))
    assert torch.allclose(dense(*project(weight, SHAPES[name])), weight, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_the_error_is_the_energy_of_the_slices_beyond_their_terms(name: str) -> None:
    first, second = SHAPES[name]
    weight = draw(second[0] * second[1], first[0] * first[2])
    error = (dense(*project(weight, SHAPES[name])) - weight).square().sum().item()
    beyond = sum(torch.linalg.svdvals(part)[n:].square().sum().item() for part, n in slices(weight, SHAPES[name]))
    assert error == pytest.approx(beyond, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["square", "narrower", "blocks do not divide the width", "other numbers of blocks"])
def test_the_projection_is_a_minimum(name: str) -> None:
    """No gradient there, and every small step away, and random factors, are worse."""
    first, second = SHAPES[name]
    weight = draw(second[0] * second[1], first[0] * first[2]).double()
    w1, w2 = (w.double().requires_grad_(True) for w in project(weight, SHAPES[name]))
    error = (dense(w1, w2) - weight).square().sum()
    error.backward()
    assert max(w1.grad.abs().max(), w2.grad.abs().max()) < 1e-4
    for seed in range(5):
        moved = dense(w1 + 1e-2 * draw(*first, seed=seed), w2 + 1e-2 * draw(*second, seed=seed))
        assert (moved - weight).square().sum() > error
        assert (dense(draw(*first, seed=seed), draw(*second, seed=seed)) - weight).square().sum() > error


@pytest.mark.parametrize(("k", "p"), [(4, 4), (3, 4), (4, 3), (2, 8)])
def test_the_fourier_matrix_of_permuted_columns_is_a_monarch_matrix(k: int, p: int) -> None:
    """F_n with columns in stride order, n = k p, is two block-diagonal factors (Cooley and Tukey 1965): every slice has rank one."""
    n = k * p
    order = torch.arange(n).view(p, k).T.flatten()
    fourier = torch.fft.fft(torch.eye(n, dtype=torch.complex128))[:, order]
    for part, terms in slices(fourier, ((k, p, p), (p, k, k))):
        singular = torch.linalg.svdvals(part)
        assert terms == 1 and (len(singular) == 1 or singular[1] < 1e-9)


def test_the_walsh_hadamard_matrix_goes_through_the_projection() -> None:
    """The real relative of the Fourier matrix, size 16."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    four = torch.kron(two, two)
    hadamard = torch.kron(four, four)
    assert torch.allclose(dense(*project(hadamard, SHAPES["square"])), hadamard, atol=1e-5)


def test_shapes_follow_the_smaller_side_and_meta_weights_cost_nothing() -> None:
    assert factor_shapes(3072, 768, 4) == ((4, 192, 192), (4, 768, 192))
    assert factor_shapes(768, 3072, 4) == ((4, 192, 768), (4, 192, 192))
    w1, w2 = project(torch.empty(3072, 768, device="meta"), factor_shapes(3072, 768, 4))
    assert w1.is_meta and w1.numel() + w2.numel() == (768**2 + 768 * 3072) // 4
