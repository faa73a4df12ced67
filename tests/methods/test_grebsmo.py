"""The sparse part of a weight: spikes on a low-rank ground, exact counts on any shape, an independent transcription of the recursion."""

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.maths.grebsmo import first_rows, support


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spiked(rank: int, n: int, size: float, shape: tuple[int, int] = (128, 96)) -> tuple[Tensor, set[int]]:
    """Low rank + noise + n spikes, and where they are."""
    draws = generator(1)
    ground = torch.randn(shape[0], rank, generator=draws) @ torch.randn(rank, shape[1], generator=draws) * 0.05
    weight = ground + 0.002 * torch.randn(shape, generator=draws)
    places = torch.randperm(weight.numel(), generator=draws)[:n]
    weight.view(-1)[places] += size * (torch.randint(0, 2, (n,), generator=draws) * 2 - 1)
    return weight, set(places.tolist())


@pytest.mark.parametrize(("rank", "rounds"), [(1, 1), (4, 1)])
def test_spikes_on_a_low_rank_ground_are_found(rank: int, rounds: int) -> None:
    """While U V is too small to take them in; more rounds would."""
    weight, places = spiked(rank, 16, 3.0)
    mask = support(weight, 16, rounds, 0.01, generator())
    assert set(mask.flatten().nonzero().flatten().tolist()) == places


def reference(weight: np.ndarray, start: np.ndarray, rounds: int, threshold: float) -> np.ndarray:
    """The official recursion in float64 numpy: the residual of the last round."""
    v = start
    for _ in range(rounds):
        s = np.zeros_like(weight)
        for _ in range(2):
            u, _ = np.linalg.qr((weight - s) @ v.T)
            v = u.T @ (weight - s)
            s = weight - u @ v
            s[np.abs(s) < threshold] = 0
        rest = weight - u @ v - s
        v = np.concatenate([v, np.linalg.qr(rest)[1][:5]])
    return s


@pytest.mark.parametrize("rounds", [1, 4, 10])
def test_equals_the_recursion_of_the_official_code(rounds: int) -> None:
    weight = torch.randn(96, 80, generator=generator(2)) * 0.05
    start = torch.randn(1, 80, generator=generator()).double().numpy()
    s = np.abs(reference(weight.double().numpy(), start, rounds, 0.01)).flatten()
    mask = support(weight, 64, rounds, 0.01, generator()).flatten().numpy()
    assert (s > 0).sum() > 64 and mask.sum() == 64
    assert set(np.flatnonzero(mask)) == set(np.argsort(-s)[:64])


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6), (1, 9)])
@pytest.mark.parametrize("n", [0, 1, 6])
def test_narrow_matrices_give_exact_counts_after_any_number_of_rounds(shape: tuple[int, int], n: int) -> None:
    """The recursion itself would end with an empty S."""
    weight = torch.randn(shape, generator=generator(3))
    assert np.abs(reference(weight.double().numpy(), np.ones((1, shape[1])), 30, 0.01)).max() == 0
    mask = support(weight, n, 100, 0.01, generator())
    assert mask.shape == shape and mask.sum() == n
    assert support(torch.zeros(shape), n, 100, 0.01, generator()).sum() == n


@pytest.mark.parametrize("shape", [(8, 8), (20, 7), (3, 30)])
def test_the_first_rows_are_those_of_the_whole_decomposition(shape: tuple[int, int]) -> None:
    rest = torch.randn(shape, generator=generator(4), dtype=torch.float64)
    whole = torch.linalg.qr(rest).R[:5]
    rows = first_rows(rest)
    assert torch.allclose((rows * whole).sum(1).abs(), rows.norm(dim=1) * whole.norm(dim=1)) and torch.allclose(rows.norm(), whole.norm())


def test_the_start_is_drawn() -> None:
    weight = torch.randn(40, 40, generator=generator(3)) * 0.05
    first, again, other = (support(weight, 30, 3, 0.01, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
