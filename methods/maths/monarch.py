"""Monarch matrices (Dao et al. 2022, arXiv 2204.00595): two block-diagonal factors with fixed permutations, and their projection. Pure.

w1 (k, q, p) and w2 (j, s, r) with k q = j r map n = k p inputs to m = j s outputs. With block indices a < k and b < j:

    u[a, i] = sum_p w1[a, i, p] x[a, p]
    v[b, r] = u_flat[t],  t = a q + i = r j + b      (u read across: a stride permutation)
    y[s j + b] = sum_r w2[b, s, r] v[b, r]

So M[(s, b), (a, p)], for one pair (a, b), is the sum over the t that lie in block a and are read by block b of an outer product
w2[b, :, r] w1[a, i, :]: a slice of rank at most the number of such t (1 where q = j, as in the paper's square case of size k^2;
q / j where j divides q). No t serves two pairs, so every slice is approximated alone, and its truncated SVD, with the
singular values split evenly, gives the nearest Monarch matrix in the Frobenius norm (the paper's Section 3.3).
"""

import torch
from torch import Tensor

from methods.maths.lowrank import truncated_svd

Shape = tuple[int, int, int]
Shapes = tuple[Shape, Shape]
"""Those of w1 and w2."""


def factor_shapes(m: int, n: int, blocks: int) -> Shapes:
    """Those of a map from n inputs to m outputs, each a multiple of `blocks`; the smaller side stands between the factors."""
    p, s = n // blocks, m // blocks
    q = min(p, s)
    return (blocks, q, p), (blocks, s, q)


def multiply(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """M x: (..., k p) -> (..., j s)."""
    u = torch.einsum("...ap,aip->...ai", x.unflatten(-1, (w1.shape[0], w1.shape[2])), w1)
    v = u.flatten(-2).unflatten(-1, (w2.shape[2], w2.shape[0]))
    return torch.einsum("...rb,bsr->...sb", v, w2).flatten(-2)


def dense(w1: Tensor, w2: Tensor) -> Tensor:
    """M (j s, k p)."""
    return multiply(torch.eye(w1.shape[0] * w1.shape[2], dtype=w1.dtype, device=w1.device), w1, w2).mT


@torch.no_grad()
def project(weight: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
    """(w1, w2), float32, of the Monarch matrix nearest to `weight` (j s, k p); empty ones for a meta weight."""
    w1, w2 = (torch.zeros(shape, device=weight.device) for shape in shapes)
    if weight.is_meta:
        return w1, w2
    (k, q, p), (j, s, _) = shapes
    slices = weight.float().reshape(s, j, k, p).permute(2, 1, 0, 3)
    left, values, right = truncated_svd(slices, -(-q // j))
    left, right = left * values.sqrt()[..., None, :], right * values.sqrt()[..., None]
    a, i, b, r, number = _terms(k, q, j, values.shape[-1], weight.device)
    w1[a, i] = right[a, b, number]
    w2[b, :, r] = left[a, b, :, number]
    return w1, w2


def _terms(k: int, q: int, j: int, most: int, device: torch.device) -> Tensor:
    """(a, i, b, r, number) of every t: `number` counts the t of one pair (a, b); those from `most` on are left out."""
    t = torch.arange(k * q, device=device)
    a, i, b, r = t // q, t % q, t % j, t // j
    first = (a * q - b + j - 1) // j
    number = r - first
    return torch.stack([a, i, b, r, number])[:, number < most]
