"""A sum of Kronecker products against torch.kron."""

import torch

from methods.maths.phm import kronecker_sum


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_it_is_the_sum_of_kronecker_products() -> None:
    for n, p, r, q in ((4, 5, 2, 1), (3, 2, 7, 2), (1, 4, 3, 3)):
        rule, left, right = draw(n, n, n), draw(n, p, q), draw(n, q, r)
        expected = sum(torch.kron(rule[i], left[i] @ right[i]) for i in range(n))
        found = kronecker_sum(rule, left, right)
        assert found.shape == (n * p, n * r)
        assert torch.allclose(found, expected, atol=1e-12)


def test_its_gradients_are_those_of_the_sum() -> None:
    tensors = [draw(2, 2, 2), draw(2, 3, 1), draw(2, 1, 4)]
    for tensor in tensors:
        tensor.requires_grad_(True)
    assert torch.autograd.gradcheck(kronecker_sum, tensors)
