"""Linear maps under a mask that follows from scores, with the straight-through gradient dL/dS := dL/dM. Pure.

y = x (M * W)^T + b; with G = dL/d(M * W) = (dL/dy)^T x: dL/dW = G * M, dL/dS = dL/dM = G * W (Sanh et al. 2020, arXiv 2005.07683).
Of all matrices of the weight's size only M, one byte an entry, is kept for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from methods.maths.masks import topk_mask
from methods.spec import Diverged


def lowest_mask(scores: Tensor, sparsity: float) -> Tensor:
    """True but for the int(s n k) smallest scores of each matrix (..., n, k); among equal scores the first stay.

    Raises:
        Diverged: a NaN score, which comes before the loss shows it.
    """
    flat = scores.flatten(-2)
    n = flat.shape[-1]
    try:
        return topk_mask(flat, n - int(sparsity * n)).view(scores.shape)
    except ValueError as error:
        raise Diverged("a score of a weight became NaN") from error


class MaskedLinear(Function):
    """`MaskedLinear.apply(x, weight, bias, scores, mask, own_scores)` -> y (..., out).

    x (..., in), weight (out, in), bias (out) or None, mask (out, in) bool. `scores` (out, in) or None: what the mask was made from, here
    only to be given its gradient. With `own_scores` the scores are |W|, so that dL/dW = G * M + G * |W|.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, _scores: Tensor | None, mask: Tensor, own_scores: bool) -> Tensor:
        """In the dtype of x, or of autocast."""
        ctx.save_for_backward(x, weight, mask)
        ctx.own_scores = own_scores
        return product(x, weight * mask, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """For x, weight, bias and scores, those that need one."""
        x, weight, mask = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_scores, *_ = ctx.needs_input_grad
        for_x = product_gradient_x(grad, weight * mask, x) if needs_x else None
        for_weight = for_scores = None
        if needs_weight or needs_scores:
            g = product_gradient_weight(grad, x)
            for_scores = g * weight if needs_scores else None
            for_weight = (g * (mask + weight.abs()) if ctx.own_scores else g * mask).to(weight.dtype) if needs_weight else None
        for_bias = grad.flatten(0, -2).sum(0) if needs_bias else None
        return for_x, for_weight, for_bias, for_scores, None, None


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b in the dtype of x, or of autocast."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def exactly(x: Tensor) -> torch.autocast:
    """A block without autocast on the device of x."""
    return torch.autocast(x.device.type, enabled=False)


def product_gradient_x(grad: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """dL/dx from dL/dy (..., out) and the weight of the product, in the dtype of x."""
    with exactly(x):
        return (grad @ weight.to(grad.dtype)).to(x.dtype)


def product_gradient_weight(grad: Tensor, x: Tensor) -> Tensor:
    """G = (dL/dy)^T x (out, in), float32 or more."""
    with exactly(x):
        g = grad.flatten(0, -2).mT @ x.flatten(0, -2).to(grad.dtype)
        return g if g.dtype == torch.float64 else g.float()
