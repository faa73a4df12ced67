"""Factors of the principal part of a matrix. Pure; W is (out, in)."""

import torch
from torch import Tensor

from methods.maths.lowrank import truncated_svd


@torch.no_grad()
def principal_factors(weight: Tensor, rank: int, iterations: int | None = None) -> tuple[Tensor, Tensor]:
    """(U_r S_r^1/2 (out, r), S_r^1/2 V_r^T (r, in)) of W = U S V^T, float32; of a meta tensor their shapes.

    `iterations`: None = exact; else the randomised decomposition of Halko et al. 2011 (arXiv 0909.4061) with so many power
    iterations, whose test matrix comes from torch's global generator. The rank must not exceed min(out, in).
    """
    if iterations is None or weight.is_meta:
        u, s, vt = truncated_svd(weight, rank)
    else:
        u, s, v = torch.svd_lowrank(weight.detach().float(), rank, niter=iterations)
        vt = v.mT
    root = s.sqrt()
    return u * root, root[:, None] * vt
