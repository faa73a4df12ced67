"""Grafts: the relaxation against autograd and its limits, rounding, exact ends, overlap by hand."""

import math

import pytest
import torch

from methods.maths.graft import grafted, overlap, relaxed, rounded, slope


def entries() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    patch = torch.rand(40, generator=draws) < 0.3
    return patch, torch.randn(40, generator=draws, dtype=torch.float64) * 8 + 8


def test_the_relaxation_is_that_of_the_paper_and_its_slope_that_of_autograd() -> None:
    patch, s = entries()
    g0, s = patch.double(), s.requires_grad_()
    gamma = g0 + (1 - 2 * g0) * torch.sigmoid(s - 10)
    assert torch.allclose(relaxed(patch, s, 10.0), gamma, atol=1e-15)
    (reference,) = torch.autograd.grad(gamma.sum(), s)
    assert torch.allclose(slope(patch, s.detach(), 10.0), reference, atol=1e-15)
    assert torch.equal(rounded(patch, s.detach(), 10.0), gamma > 0.5)


def test_it_starts_as_the_base_patch_and_a_large_s_flips_it() -> None:
    patch = torch.tensor([True, False])
    start = relaxed(patch, torch.tensor([0.5, 0.5]), 10.0)
    assert start.tolist() == pytest.approx([1 - 7.48e-5, 7.48e-5], rel=1e-2)
    assert rounded(patch, torch.zeros(2), 10.0).tolist() == [True, False]
    assert relaxed(patch, torch.full((2,), 60.0), 10.0).tolist() == [0, 1]
    assert rounded(patch, torch.full((2,), 10.1), 10.0).tolist() == [False, True]


def test_a_graft_takes_either_models_bits() -> None:
    before, after = torch.tensor([0.1, 1e8, -3.0]), torch.tensor([0.3, 1.0, 7.0])
    assert torch.equal(grafted(torch.zeros(3, dtype=torch.bool), before, after), before)
    assert torch.equal(grafted(torch.ones(3, dtype=torch.bool), before, after), after)
    assert grafted(torch.tensor([True, True, False]), before, after).tolist() == [after[0].item(), 1.0, -3.0]


def test_overlap_is_over_the_first_graft() -> None:
    one = {"a": torch.tensor([True, True, False]), "b": torch.tensor([[True], [False]])}
    other = {"a": torch.tensor([True, False, True]), "b": torch.tensor([[True], [True]])}
    assert overlap(one, one) == overlap(other, other) == 1.0
    assert (overlap(one, other), overlap(other, one)) == (2 / 3, 2 / 4)
    assert math.isnan(overlap({"a": torch.zeros(3, dtype=torch.bool)}, one))
