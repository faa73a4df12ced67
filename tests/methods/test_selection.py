"""The k largest entries over several tensors: numpy's stable sort as reference, exact counts under ties and for every k."""

import numpy as np
import pytest
import torch

from methods.maths.masks import kept
from methods.maths.selection import topk_masks


def tensors(grid: float | None = None) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    found = {"a": torch.randn(5, 4, generator=draws), "b": torch.randn(3, generator=draws), "c": torch.randn(2, 3, 2, generator=draws)}
    return {name: (t * 2).round() / 2 if grid else t for name, t in found.items()}


@pytest.mark.parametrize("grid", [None, 0.5])
def test_equals_a_stable_sort_for_every_k(grid: float | None) -> None:
    scores = tensors(grid)
    flat = torch.cat([t.flatten() for t in scores.values()]).numpy()
    order = np.argsort(-flat, kind="stable")
    for k in range(len(flat) + 1):
        chosen = torch.cat([m.flatten() for m in topk_masks(scores, k).values()]).numpy()
        assert set(np.flatnonzero(chosen)) == set(order[:k])


def test_counts_stay_exact_in_models_of_any_size() -> None:
    """The count passes through a fraction of the entries."""
    for n in (10**6 + 3, 7 * 10**9 + 1, 10**12 + 7):
        assert all(kept(n, 1 - k / n) == k for k in (1, 2, 12_345, n // 3, n - 1, n))


def test_minus_infinity_is_chosen_last_and_bad_counts_are_refused() -> None:
    scores = {"a": torch.tensor([-torch.inf, 1.0, -torch.inf]), "b": torch.tensor([-5.0])}
    assert {n: m.tolist() for n, m in topk_masks(scores, 2).items()} == {"a": [False, True, False], "b": [True]}
    for k in (-1, 5):
        with pytest.raises(ValueError, match=rf"k={k} is outside \[0, 4\]"):
            topk_masks(scores, k)
    with pytest.raises(ValueError, match="NaN"):
        topk_masks({"a": torch.tensor([torch.nan])}, 1)
