"""N:M masks that come on slowly: decay factors, stages of patterns, and the linear map with its straight-through gradient. Pure.

W_f = W * (M + (1 - M) beta), M = the N largest |W| of each M consecutive inputs. beta = 1 is dense, 0 the hard mask; with
G = dL/dW_f the weight gets G, or G * (M + (1 - M) beta) if scaled. Bambhaniya et al. 2024 (arXiv 2402.04744); the penalty of SR-STE,
lambda (1 - M) * W on the gradient: Zhou et al. 2021 (arXiv 2102.04010).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from methods.maths.masks import nm_mask
from methods.maths.straight_through import product, product_gradient_weight, product_gradient_x
from methods.spec import Diverged


class Flow(NamedTuple):
    """How much of the weights a forward pass sees."""

    n: int
    m: int
    beta: float
    """What is left of the weights outside the mask, in [0, 1]."""


def stepwise(n: int, m: int) -> list[tuple[int, int]]:
    """(M-1):M, M/2:M, M/4:M, ..., N:M: one group size, log2(M / N) + 1 patterns.

    Raises:
        ValueError: M / N is no power of two.
    """
    halvings = (m // n).bit_length() - 1
    if n << halvings != m:
        raise ValueError(f"{m} / {n} is no power of two")
    return [(m - 1, m), *((m >> i, m) for i in range(1, halvings + 1))]


def geometric(n: int, m: int) -> list[tuple[int, int]]:
    """8N:8M, 4N:4M, 2N:2M, N:M: one density, groups that shrink."""
    return [(scale * n, scale * m) for scale in (8, 4, 2, 1)]


def stage(position: int, length: int, stages: int) -> int:
    """Which of `stages` equal parts of `length` steps the step `position` in [0, length) lies in."""
    return stages * position // length


def linear_beta(rate: float, t: int) -> float:
    """max(1 - k t, 0)."""
    return max(1 - rate * t, 0.0)


def exponential_beta(rate: float, t: int) -> float:
    """exp(-k t)."""
    return math.exp(-rate * t)


def magnitude_mask(weight: Tensor, n: int, m: int) -> Tensor:
    """M (out, in), bool, of a weight (out, in). `Diverged` for a NaN."""
    if weight.isnan().any():
        raise Diverged("a weight became NaN")
    return nm_mask(weight.abs(), n, m)


def shown(weight: Tensor, mask: Tensor, beta: float) -> Tensor:
    """W * (M + (1 - M) beta); exact zeros at beta = 0, W itself at beta = 1."""
    return weight * mask if beta == 0 else torch.where(mask, weight, weight * beta)


def decay_gradient(weight: Tensor, mask: Tensor, rate: float) -> Tensor:
    """SR-STE's lambda (1 - M) * W, which is added to the gradient."""
    return rate * weight.masked_fill(mask, 0.0)


class FlowLinear(Function):
    """`FlowLinear.apply(x, weight, bias, mask, beta, scaled)` -> y (..., out) = x W_f^T + b.

    x (..., in), weight (out, in), bias (out) or None, mask (out, in) bool; `scaled`: does beta multiply the gradient too?
    Only the mask, one byte an entry, is kept beside x and the weight.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, beta: float, scaled: bool) -> Tensor:
        """In the dtype of x, or of autocast."""
        ctx.save_for_backward(x, weight, mask)
        ctx.beta, ctx.scaled = beta, scaled
        return product(x, shown(weight, mask, beta), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """For x, weight and bias, those that need one."""
        x, weight, mask = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        for_x = product_gradient_x(grad, shown(weight, mask, ctx.beta), x) if needs_x else None
        for_bias = grad.flatten(0, -2).sum(0) if needs_bias else None
        if not needs_weight:
            return for_x, None, for_bias, None, None, None
        g = product_gradient_weight(grad, x)
        for_weight = shown(g, mask, ctx.beta) if ctx.scaled else g
        return for_x, for_weight.to(weight.dtype), for_bias, None, None, None
