"""PST's masked linear map (Li et al. 2022, arXiv 2205.11005): forward pass and the closed forms of its six gradients. Pure.

W_t = W + beta U V; S = |W_t| + alpha1 A B + alpha2 (R 1^T + 1 C^T); M = 0 for the int(s n k) smallest S of a matrix; y = x (M * W_t)^T + b.
With G = dL/d(M * W_t) and D = G * W_t = dL/dM =: dL/dS:
dL/dA = alpha1 D B^T, dL/dB = alpha1 A^T D, dL/dR = alpha2 D 1, dL/dC = alpha2 D^T 1; dL/dU = beta Q V^T, dL/dV = beta U^T Q with
Q = dL/dW_t = G * M + D * sign(W_t), of which `detach_magnitude` drops the second term.

Matrices are (..., n, k), n outputs and k inputs; a leading dimension holds the parts of a fused map (`methods.maths.rows`).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from methods.maths.rows import Rows
from methods.maths.straight_through import exactly, lowest_mask, product, product_gradient_weight, product_gradient_x


class Factors(NamedTuple):
    """U (..., n, r1), V (..., r1, k), A (..., n, r2), B (..., r2, k), R (..., n), C (..., k)."""

    u: Tensor
    v: Tensor
    a: Tensor
    b: Tensor
    r: Tensor
    c: Tensor


@dataclass(frozen=True)
class Scales:
    """beta of U V, alpha1 of A B, alpha2 of R and C; is |W_t| a constant of the backward pass?"""

    beta: float
    alpha1: float
    alpha2: float
    detach_magnitude: bool


def dense(weight: Tensor, f: Factors, scales: Scales) -> Tensor:
    """W_t (..., n, k)."""
    return (f.u @ f.v).mul_(scales.beta).add_(weight)


def scores(w_t: Tensor, f: Factors, scales: Scales) -> Tensor:
    """S (..., n, k)."""
    learned = (f.a @ f.b).mul_(scales.alpha1)
    return learned.add_(f.r.unsqueeze(-1), alpha=scales.alpha2).add_(f.c.unsqueeze(-2), alpha=scales.alpha2).add_(w_t.abs())


@torch.no_grad()
def masked_weight(weight: Tensor, f: Factors, scales: Scales, sparsity: float) -> tuple[Tensor, Tensor]:
    """(M * W_t, M), both (..., n, k), in the dtype of the factors and bool."""
    w_t = dense(weight.to(f.u.dtype), f, scales)
    mask = lowest_mask(scores(w_t, f, scales), sparsity)
    return w_t.mul_(mask), mask


def factor_gradients(g: Tensor, w_t: Tensor, mask: Tensor, f: Factors, scales: Scales) -> Factors:
    """The six gradients from G (..., n, k)."""
    d = g * w_t
    for_dense = g * mask if scales.detach_magnitude else (d * w_t.sign()).addcmul_(g, mask.to(g.dtype))
    return Factors(
        u=scales.beta * (for_dense @ f.v.mT),
        v=scales.beta * (f.u.mT @ for_dense),
        a=scales.alpha1 * (d @ f.b.mT),
        b=scales.alpha1 * (f.a.mT @ d),
        r=scales.alpha2 * d.sum(-1),
        c=scales.alpha2 * d.sum(-2),
    )


class PstLinear(Function):
    """`PstLinear.apply(x, weight, bias, sparsity, scales, rows, *factors)` -> y (..., out), for a frozen weight (out, in) and bias.

    The backward pass makes W_t anew: of all matrices of the weight's size only M, one byte an entry, is kept, where plain autograd keeps
    W_t, M and M * W_t.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sparsity: float, scales: Scales, rows: Rows, *factors: Tensor
    ) -> Tensor:
        """In the dtype of x, or of autocast; W_t and S in that of the factors."""
        with exactly(x):
            masked, mask = masked_weight(rows.split(weight), Factors(*factors), scales, sparsity)
        ctx.save_for_backward(x, weight, mask, *factors)
        ctx.scales, ctx.rows = scales, rows
        return product(x, rows.join(masked), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """For x, and for the six factors."""
        x, weight, mask, *factors = ctx.saved_tensors
        f, scales, rows = Factors(*factors), ctx.scales, ctx.rows
        with exactly(x):
            w_t = dense(rows.split(weight).to(f.u.dtype), f, scales)
            for_x = product_gradient_x(grad, rows.join(w_t * mask), x) if ctx.needs_input_grad[0] else None
            g = rows.split(product_gradient_weight(grad, x))
            gradients = factor_gradients(g, w_t, mask, f, scales)
        return for_x, None, None, None, None, None, *gradients
