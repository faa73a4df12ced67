"""Low-rank changes that keep zeros (Zimmer et al. 2023, arXiv 2312.15230): W' = W + s M * (B A), or W' = W * (B A). Pure.

With G = dL/dW' and K = s M (or W), both (out, in): dL/d(B A) = K * G, so dL/dB = (K * G) A^T and dL/dA = B^T (K * G).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from methods.maths.statistics import output_error
from methods.maths.straight_through import exactly, product, product_gradient_weight, product_gradient_x

WARMUP = 0.1
"""Of the steps of `reconstruct`."""


def effective(weight: Tensor, mask: Tensor | None, scale: float, b: Tensor, a: Tensor) -> Tensor:
    """W' (out, in) in the dtype of the factors b (out, r) and a (r, in); without a mask it is W * (B A) and `scale` does not count."""
    change = b @ a
    weight = weight.to(change.dtype)
    return change.mul_(weight) if mask is None else change.mul_(mask).mul_(scale).add_(weight)


def factor_gradients(g: Tensor, weight: Tensor, mask: Tensor | None, scale: float, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """(dL/dB, dL/dA) from G = dL/dW' (out, in)."""
    for_change = g * weight if mask is None else g * mask * scale
    return for_change @ a.mT, b.mT @ for_change


class HadamardLinear(Function):
    """`HadamardLinear.apply(x, weight, bias, mask, scale, b, a)` -> y = x W'^T + bias (..., out), for a frozen weight (out, in).

    The backward pass makes W' anew: of matrices of the weight's size it keeps the weight and the mask alone, which are there anyway.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, scale: float, b: Tensor, a: Tensor
    ) -> Tensor:
        """In the dtype of x, or of autocast; W' in that of the factors, rounded once to the weight's."""
        ctx.save_for_backward(x, weight, mask, b, a)
        ctx.scale = scale
        with exactly(x):
            changed = effective(weight, mask, scale, b, a).to(weight.dtype)
        return product(x, changed, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """For x, bias and the factors, those that need one."""
        x, weight, mask, b, a = ctx.saved_tensors
        needs_x, _, needs_bias, *_ = ctx.needs_input_grad
        with exactly(x):
            for_x = product_gradient_x(grad, effective(weight, mask, ctx.scale, b, a).to(weight.dtype), x) if needs_x else None
            for_bias = grad.flatten(0, -2).sum(0) if needs_bias else None
            for_b, for_a = factor_gradients(product_gradient_weight(grad, x), weight, mask, ctx.scale, b, a)
        return for_x, None, for_bias, None, None, for_b, for_a


@torch.no_grad()
def reconstruct(
    dense: Tensor, pruned: Tensor, mask: Tensor | None, scale: float, b: Tensor, a: Tensor, gram: Tensor, steps: int, rate: float
) -> tuple[Tensor, float, float]:
    """(W', error before, error after): full-batch Adam on |X (dense - W')^T|_F^2 over b and a (changed in place), from G = X^T X alone.

    Errors are relative to |X dense^T|_F^2; the learning rate rises over the first tenth of the steps to `rate` and falls linearly to 0.
    The best W' that was met is returned, so the error never grows.
    """
    size = max(output_error(dense, gram), torch.finfo(gram.dtype).tiny)
    adam = torch.optim.Adam([b, a], lr=rate, eps=1e-15)
    first, least, best = None, torch.inf, pruned
    for step in range(steps + 1):
        changed = effective(pruned, mask, scale, b, a)
        error = output_error(changed - dense, gram) / size
        first = error if first is None else first
        if error < least:
            least, best = error, changed
        if step < steps:
            b.grad, a.grad = factor_gradients((changed - dense) @ gram * (2 / size), pruned, mask, scale, b, a)
            adam.param_groups[0]["lr"] = rate * slope(step, steps)
            adam.step()
    return best, first, least


def slope(step: int, steps: int) -> float:
    """The share of the learning rate at a step: up to 1 within a tenth of the steps, then linearly down to 0."""
    rise = max(1, round(WARMUP * steps))
    return (step + 1) / rise if step < rise else (steps - step) / max(1, steps - rise)
