"""DSnoT's swaps against a reference that moves one weight of one row at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.maths.dsnot import Rule, refine
from methods.maths.masks import nm_mask, row_mask

OFF = Rule(50, 0.1, 1.0, False)


def layer(out: int = 16, width: int = 32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """d (out, in), variance (in), score (out, in)."""
    draws = torch.Generator().manual_seed(seed)
    w = torch.randn(out, width, generator=draws)
    mean, variance = torch.randn(width, generator=draws) * 4, torch.rand(width, generator=draws) + 0.1
    return w * mean, variance, w.abs() * (mean.square() + variance).sqrt()


def one_row(kept: np.ndarray, d: np.ndarray, var: np.ndarray, score: np.ndarray, rule: Rule, group: int | None) -> np.ndarray:
    """The paper's algorithm, a row at a time, with lists."""
    kept = kept.copy()
    pruned = sorted(np.flatnonzero(~kept), key=lambda j: d[j] / var[j] ** rule.power)
    free = [j for j in np.argsort(score, kind="stable") if kept[j]]
    error = d[~kept].sum()
    sign = np.sign(error)
    for _ in range(rule.cycles):
        if not pruned or abs(error) <= rule.threshold:
            break
        grow = pruned[-1] if error > 0 else pruned[0]
        against = -1 if error > 0 else 1
        choices = [j for j in free if (j // group == grow // group if group else d[j] * against > 0)]
        if not choices:
            break
        after = error + d[choices[0]] - d[grow]
        if rule.same_sign and np.sign(after) != sign:
            break
        kept[choices[0]], kept[grow], error = False, True, after
        pruned.remove(grow)
        free.remove(choices[0])
    return kept


@pytest.mark.parametrize("rule", [OFF, Rule(50, 0.1, 1.0, True), Rule(3, 0.0, 0.0, False), Rule(50, 5.0, 0.5, True)])
@pytest.mark.parametrize("group", [None, 4])
def test_equals_the_reference_row_by_row(rule: Rule, group: int | None) -> None:
    d, variance, score = layer()
    first = nm_mask(score, 2, 4) if group else row_mask(score, 0.6)
    found = refine(first, d, variance, score, rule, group)
    arrays = [t.double().numpy() for t in (d, variance, score)]
    expected = [one_row(first[r].numpy(), arrays[0][r], arrays[1], arrays[2][r], rule, group) for r in range(16)]
    assert np.array_equal(found.numpy(), np.stack(expected))
    assert not torch.equal(found, first)


def test_no_cycles_leave_the_mask_and_rows_keep_their_counts() -> None:
    d, variance, score = layer()
    first = row_mask(score, 0.5)
    assert torch.equal(refine(first, d, variance, score, Rule(0, 0.1, 1.0, False)), first)
    assert torch.equal(refine(first, d, variance, score, OFF).sum(-1), first.sum(-1))
    pattern = refine(nm_mask(score, 2, 4), d, variance, score, OFF, 4)
    assert (pattern.unflatten(-1, (-1, 4)).sum(-1) == 2).all()


def test_with_the_same_sign_the_error_never_grows_and_it_ends_smaller() -> None:
    d, variance, score = layer(64, 48, seed=3)
    first = row_mask(score, 0.7)
    errors = []
    for cycles in range(12):
        mask = refine(first, d, variance, score, Rule(cycles, 0.1, 1.0, True))
        errors.append(d.masked_fill(mask, 0).sum(-1).abs())
    stacked = torch.stack(errors)
    assert (stacked.diff(dim=0) <= 1e-5).all()
    assert stacked[-1].mean() < 0.5 * stacked[0].mean()


def test_error_is_the_mean_difference_of_the_outputs() -> None:
    """e_r times sequences = sum over tokens of (dense - sparse) output r."""
    draws = torch.Generator().manual_seed(5)
    x, w = torch.randn(2, 30, 8, generator=draws) + 1, torch.randn(3, 8, generator=draws)
    mask = row_mask(w.abs(), 0.5)
    mean = x.sum((0, 1)) / 2
    lost = (w * mean).masked_fill(mask, 0).sum(-1)
    outputs = (x @ w.T - x @ (w * mask).T).sum((0, 1)) / 2
    torch.testing.assert_close(lost, outputs, rtol=1e-4, atol=1e-4)
