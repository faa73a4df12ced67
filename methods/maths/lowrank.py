"""Truncated SVD with deterministic signs. Pure; W is (out, in), computed in float32 on the tensor's own device.

Eckart and Young 1936: the first r triples give the best approximation of rank r, with squared Frobenius error sum_{i>r} sigma_i^2.
A singular pair is known up to a common sign only; here the entry of u_i that is largest in size (the first of equals) is positive.
Equal singular values leave a rotation besides, so factors may be compared between machines only as the product.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Triples(NamedTuple):
    """W ~ U diag(S) V^T, the largest singular values first."""

    u: Tensor
    """U (out, r), orthonormal columns."""
    s: Tensor
    """S (r,), falling, not negative."""
    vt: Tensor
    """V^T (r, in), orthonormal rows."""


@torch.no_grad()
def truncated_svd(weight: Tensor, rank: int) -> Triples:
    """The first min(rank, out, in) singular triples of `weight` (..., out, in); of a meta tensor their shapes."""
    u, s, vt = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    u, s, vt = u[..., :rank], s[..., :rank], vt[..., :rank, :]
    sign = _signs(u)
    return Triples((u * sign).contiguous(), s.contiguous(), (vt * sign.mT).contiguous())


def energy_rank(s: Tensor, share: float, power: int) -> int:
    """The smallest r with sum_{i<=r} s_i^power >= share * sum_i s_i^power, at least 1; s (k,) falling."""
    energy = s.double() ** power
    reached = energy.cumsum(0) >= share * energy.sum() * (1 - 1e-12)
    return max(1, min(len(s), int((~reached).sum()) + 1))


def _signs(u: Tensor) -> Tensor:
    """(..., 1, r): -1 for a column whose largest entry in size is negative, else 1."""
    largest = u.gather(-2, u.abs().argmax(-2, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0)
