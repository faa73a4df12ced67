"""Low-rank approximations of matrices, on any device: the meta device gives shapes alone."""

import torch
from torch import Tensor


def principal_factors(matrix: Tensor, rank: int, iterations: int | None = None) -> tuple[Tensor, Tensor]:
    """(U_r S_r^1/2 (m, r), S_r^1/2 V_r^T (r, n)) of the singular value decomposition of a matrix (m, n), float32.

    `iterations`: None = exact; else the randomised decomposition of Halko et al. 2011 (arXiv 0909.4061) with so many power
    iterations, whose test matrix comes from torch's global generator. The rank must not exceed min(m, n).
    """
    if matrix.is_meta:
        return matrix.new_empty(matrix.shape[0], rank, dtype=torch.float32), matrix.new_empty(rank, matrix.shape[1], dtype=torch.float32)
    u, s, vt = _decomposed(matrix.float(), rank, iterations)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank]


def _decomposed(matrix: Tensor, rank: int, iterations: int | None) -> tuple[Tensor, Tensor, Tensor]:
    if iterations is None:
        return torch.linalg.svd(matrix, full_matrices=False)
    u, s, v = torch.svd_lowrank(matrix, rank, niter=iterations)
    return u, s, v.mT
