"""Masks with floored counts, and the masked product against a dense autograd reference, under autocast and in memory."""

import pytest
import torch
from torch import Tensor

from methods.maths.straight_through import MaskedLinear, lowest_mask
from methods.spec import Diverged

N, K = 5, 7


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.333, 0.5, 0.9, 0.99])
def test_exactly_the_floor_of_the_share_is_pruned_and_it_is_the_smallest(sparsity: float) -> None:
    scores = draw(3, N, K)
    mask = lowest_mask(scores, sparsity)
    for matrix, kept in zip(scores, mask, strict=True):
        order = matrix.flatten().argsort()
        assert (~kept).sum() == int(sparsity * N * K)
        assert not kept.flatten()[order[: int(sparsity * N * K)]].any()


def test_ties_are_cut_to_the_same_count_and_a_nan_is_divergence() -> None:
    assert lowest_mask(torch.zeros(2, 5), 0.5).tolist() == [[True] * 5, [False] * 5]
    with pytest.raises(Diverged):
        lowest_mask(torch.tensor([[0.0, torch.nan]]), 0.5)


def reference(x: Tensor, weight: Tensor, bias: Tensor, scores: Tensor | None, mask: Tensor) -> Tensor:
    """The mask as a function of the scores with slope 1."""
    soft = mask.double() if scores is None else mask + scores - scores.detach()
    return x @ (soft * weight).T + bias


@pytest.mark.parametrize("kind", ["movement", "magnitude", "magnitude detached"])
def test_gradients_are_those_of_dense_autograd(kind: str) -> None:
    def run(own: bool) -> list[Tensor]:
        leaves = [draw(2, 3, K), draw(N, K), draw(N, seed=1), draw(N, K, seed=2)]
        x, weight, bias, scores = (leaf.requires_grad_() for leaf in leaves)
        score = scores if kind == "movement" else weight.abs()
        mask = lowest_mask(score.detach(), 0.4)
        if own:
            y = MaskedLinear.apply(x, weight, bias, scores if kind == "movement" else None, mask, kind == "magnitude")
        else:
            y = reference(x, weight, bias, None if kind == "magnitude detached" else score, mask)
        wanted = leaves if kind == "movement" else leaves[:3]
        return [y.detach(), *torch.autograd.grad((y**3).sum(), wanted)]

    for ours, theirs in zip(run(True), run(False), strict=True):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-10)


def test_frozen_inputs_get_no_gradient() -> None:
    weight, scores = draw(N, K).requires_grad_(), draw(N, K).requires_grad_()
    MaskedLinear.apply(draw(2, K), weight, None, scores, torch.ones(N, K, dtype=torch.bool), False).sum().backward()
    assert torch.allclose(scores.grad, weight.grad * weight)


def test_under_autocast_the_product_is_bfloat16_and_the_gradients_keep_their_dtypes() -> None:
    x, weight, scores = (t.float().requires_grad_() for t in (draw(2, K), draw(N, K), draw(N, K, seed=1)))
    mask = lowest_mask(scores.detach(), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        y = MaskedLinear.apply(x, weight, None, scores, mask, False)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, (x.bfloat16() @ (weight * mask).bfloat16().T))
    y.float().sum().backward()
    assert {t.grad.dtype for t in (x, weight, scores)} == {torch.float32}
    assert torch.allclose(scores.grad, x.bfloat16().float().sum(0) * weight, atol=1e-2)


def test_only_the_mask_is_kept_for_the_backward_pass() -> None:
    x, weight, scores = draw(2, K).requires_grad_(), draw(N, K).requires_grad_(), draw(N, K).requires_grad_()
    mask = lowest_mask(scores.detach(), 0.5)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        MaskedLinear.apply(x, weight, None, scores, mask, False)
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), weight.data_ptr(), mask.data_ptr()}
    assert mask.nbytes == N * K
