"""The LDU factorisation with row pivoting of a rectangular matrix: W = P L diag(d) U, L and U with ones on their diagonals."""

import torch
from torch import Tensor

TINY = 1e-10
"""Pivots below this share of the largest one are not divided by."""


def ldu(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(P L (m, k), d (k), U (k, n)), float32, with P L diag(d) U = W (m, n) and k = min(m, n); computed in float64 on the CPU.

    A row of U whose pivot is (nearly) zero keeps its size, and its d is 1: the product stays exact. Empty tensors for the meta device.
    """
    m, n = weight.shape
    k = min(m, n)
    if weight.is_meta:
        return weight.new_empty(m, k), weight.new_empty(k), weight.new_empty(k, n)
    permutation, lower, upper = torch.linalg.lu(weight.detach().cpu().double())
    pivots = upper.diagonal()
    d = torch.where(pivots.abs() > TINY * pivots.abs().max(), pivots, 1.0)
    factors = lower[permutation.argmax(1)], d, upper / d[:, None]
    return tuple(factor.to(weight.device, torch.float32) for factor in factors)
