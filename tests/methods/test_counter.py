"""Stateless random numbers and mixtures of bases made from them: an independent generator, statistics, gradients, memory."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from methods.maths import counter, mixture
from methods.maths.mixture import mixture as mix


def key(seed: int = 0, device: str = "cpu") -> Tensor:
    return counter.keys(1, torch.Generator().manual_seed(seed), device)[0]


def murmur(words: np.ndarray) -> np.ndarray:
    words = words ^ (words >> np.uint32(16))
    words = words * np.uint32(0x85EBCA6B)
    words = words ^ (words >> np.uint32(13))
    words = words * np.uint32(0xC2B2AE35)
    return words ^ (words >> np.uint32(16))


def test_it_is_murmurs_finalizer_in_unsigned_words() -> None:
    """Against numpy's unsigned arithmetic; 0x514E28B7 is what the published finalizer makes of 1."""
    assert murmur(np.array([1], np.uint32))[0] == 0x514E28B7
    first, second = (np.array([word], np.int32).view(np.uint32) for word in key().tolist())
    words = murmur(murmur(np.arange(5, 1005, dtype=np.uint32) + first) ^ second)
    expected = (words.view(np.int32) >> 8).astype(np.float64) * 2.0**-23
    assert np.array_equal(counter.uniform(key(), 5, 1000).double().numpy(), expected)


def test_numbers_depend_on_their_index_alone() -> None:
    whole = counter.uniform(key(), 0, 1000)
    assert torch.equal(torch.cat([counter.uniform(key(), 0, 300), counter.uniform(key(), 300, 700)]), whole)
    assert not torch.equal(counter.uniform(key(1), 0, 1000), whole)
    assert counter.uniform(key(device="meta"), 0, 4).shape == (4,)
    with pytest.raises(ValueError, match="there are 2147483648"):
        counter.uniform(key(), counter.LIMIT, 1)


def test_numbers_are_uniform_and_independent() -> None:
    """Kolmogorov-Smirnov against U(-1, 1), and correlations at many lags and between keys within 5 standard errors."""
    n = 200_000
    values = counter.uniform(key(), 0, n).double()
    assert values.min() >= -1 and values.max() < 1
    assert stats.kstest(values.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    bits = torch.stack([((values + 1) * 2**k).long() % 2 for k in range(1, 17)]).double().mean(1)
    assert ((bits - 0.5).abs() < 5 * 0.5 / n**0.5).all()
    for lag in (1, 2, 7, 8, 64, 384, 4096):
        assert (values[lag:] * values[:-lag]).mean().abs() < 5 / 3 / n**0.5
    for seed in range(1, 8):
        assert (values * counter.uniform(key(seed), 0, n)).mean().abs() < 5 / 3 / n**0.5


def test_keys_are_independent_draws() -> None:
    drawn = counter.keys(1000, torch.Generator().manual_seed(0), "cpu")
    assert drawn.shape == (1000, 2) and drawn.dtype == torch.int32
    assert len(set(map(tuple, drawn.tolist()))) == 1000 and (drawn < 0).float().mean().item() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("chunk", [1, 40, 2**16])
def test_mixture_and_gradient_are_those_of_a_stored_basis(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "CHUNK", chunk)
    k, shape = 23, (3, 5)
    basis = counter.uniform(key(), 0, k * 15).double().view(k, *shape) / k**0.5
    c = torch.randn(k, dtype=torch.float64, requires_grad=True)
    g = torch.randn(*shape, dtype=torch.float64)
    expected = torch.einsum("k,kij->ij", c, basis)
    assert torch.allclose(mix(c, key(), shape), expected, atol=1e-12)
    stored = torch.autograd.grad((expected * g).sum(), c)[0]
    made = torch.autograd.grad((mix(c, key(), shape) * g).sum(), c)[0]
    assert torch.allclose(made, stored, atol=1e-12) and torch.allclose(made, (basis * g).sum((1, 2)), atol=1e-12)
    assert torch.autograd.gradcheck(lambda c: mix(c, key(), shape), c)


def test_a_basis_as_large_as_the_matrix_reaches_every_matrix() -> None:
    shape, k = (4, 6), 24
    basis = torch.stack([mix(row, key(), shape).flatten() for row in torch.eye(k, dtype=torch.float64)], dim=1)
    target = torch.randn(24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    c = torch.linalg.lstsq(basis, target).solution
    assert (mix(c, key(), shape).flatten() - target).norm() < 1e-8 * target.norm()
    few = torch.linalg.lstsq(basis[:, :12], target).solution
    assert (basis[:, :12] @ few - target).norm() > 0.1 * target.norm()


def test_the_graph_keeps_the_key_and_nothing_else() -> None:
    saved: list[Tensor] = []
    c, made = torch.randn(100, requires_grad=True), key()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mix(c, made, (30, 40)).sum()
    assert [tuple(t.shape) for t in saved] == [(2,)]


def test_autocast_changes_nothing() -> None:
    c = torch.randn(100, requires_grad=True)
    plain = mix(c, key(), (3, 4))
    with torch.autocast("cpu", torch.bfloat16):
        cast = mix(c, key(), (3, 4))
        gradient = torch.autograd.grad(cast.sum(), c)[0]
    assert torch.equal(cast, plain) and torch.equal(gradient, torch.autograd.grad(plain.sum(), c)[0])
