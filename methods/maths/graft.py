"""Grafts between two models (Panigrahi et al. 2023, arXiv 2302.06600, Section 2). Pure.

theta(gamma) = theta_pre + gamma (theta_ft - theta_pre). gamma in {0, 1}^N is relaxed around a base patch g_0: gamma(S) = g_0 +
(1 - 2 g_0) sigma(S - b). With b = 10 and S near 0 this is almost g_0; a large S turns an entry of the patch off, or another one on.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def relaxed(patch: Tensor, s: Tensor, bias: float) -> Tensor:
    """gamma(S) in the dtype of S; `patch` (bool) is g_0."""
    return torch.where(patch, 1 - torch.sigmoid(s - bias), torch.sigmoid(s - bias))


def slope(patch: Tensor, s: Tensor, bias: float) -> Tensor:
    """d gamma / d S = (1 - 2 g_0) sigma(S - b) (1 - sigma(S - b))."""
    sigma = torch.sigmoid(s - bias)
    return torch.where(patch, -1.0, 1.0) * sigma * (1 - sigma)


def rounded(patch: Tensor, s: Tensor, bias: float) -> Tensor:
    """gamma(S) rounded to bool: g_0 where S <= b, its opposite above."""
    return patch ^ (s > bias)


def grafted(gamma: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """theta(gamma) of a binary graft (bool): the entries of one model or the other, bit for bit."""
    return torch.where(gamma, after, before)


def overlap(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """|g_i and g_j| / |g_i| of two grafts over the same tensors (Section 4.1); `nan` for an empty g_i."""
    size = sum(int(mask.sum()) for mask in one.values())
    return sum(int((mask & other[name]).sum()) for name, mask in one.items()) / size if size else float("nan")
