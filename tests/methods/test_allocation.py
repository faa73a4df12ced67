"""Sparsities of layers: averages, order and the paper's worked case."""

import numpy as np
import pytest
import torch

from methods.maths.allocation import global_shares, outlier_ratio, owl
from methods.maths.masks import global_masks


def test_outlier_ratio_counts_over_the_whole_block() -> None:
    scores = [torch.tensor([[1.0, 1.0, 1.0, 17.0]]), torch.tensor([[0.0, 0.0, 0.0, 12.0]])]
    assert outlier_ratio(scores, 2.5) == 1 / 4  # the mean is 4
    assert outlier_ratio(scores, 4) == 1 / 8


def test_owl_keeps_the_average_and_gives_the_outliers_more_room() -> None:
    """The formula of the paper's code, in numpy: densities = ratios scaled to [0, 2 lambda], centred on 1 - s."""
    ratios = [0.4, 0.1, 0.2, 0.9]
    d = np.array(ratios)
    d = (d - d.min()) / (d.max() - d.min()) * 2 * 0.08
    expected = 1 - (d - d.mean() + 0.3)
    found = owl(ratios, 0.7, 0.08)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.mean(found) == pytest.approx(0.7) and max(found) - min(found) == pytest.approx(0.16)
    assert found.index(min(found)) == 3
    assert owl([0.2, 0.2], 0.7, 0.08) == [0.7, 0.7]


def test_global_shares_are_those_of_the_global_mask() -> None:
    draws = torch.Generator().manual_seed(0)
    scores = {"a": torch.rand(6, 10, generator=draws), "b": torch.rand(20, 4, generator=draws) * 3}
    masks = global_masks(scores, 0.6)
    found = global_shares(scores, 0.6)
    for name, mask in masks.items():
        assert found[name] == pytest.approx(1 - mask.float().mean().item())
    assert found["a"] > 0.7 > 0.6 > found["b"]
    equal = global_shares({"a": torch.ones(2, 4), "b": torch.ones(8, 4)}, 0.5)
    assert equal == {"a": 0.5, "b": 0.5}
