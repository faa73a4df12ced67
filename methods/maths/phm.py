"""Parameterised hypercomplex multiplication (Zhang et al. 2021, arXiv 2102.08597) with low-rank factors (arXiv 2106.04647, Section 4)."""

import torch
from torch import Tensor


def kronecker_sum(rule: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """H (n p, n r) = sum_i K_i kron (s_i t_i) from K (n, n, n), s (n, p, q) and t (n, q, r), for row vectors: y = x H."""
    blocks = torch.einsum("iab,ipr->apbr", rule, left @ right)
    return blocks.flatten(2).flatten(0, 1)
