"""SM3 (Anil et al. 2019, arXiv 1901.11150, SM3-II) of a matrix of whose gradient only some entries are known, the others being 0. Pure.

One accumulator per row and per column: u_ij = min(r_i, c_j) + g_ij^2, r_i <- max_j u_ij, c_j <- max_i u_ij. An entry with g = 0 never
raises a maximum, and accumulators never fall (each is some earlier u, which its other accumulator bounds), so the known entries suffice.
"""

import torch
from torch import Tensor


def sm3_accumulate(rows: Tensor, columns: Tensor, gradient: Tensor, positions: Tensor) -> Tensor:
    """u (K,) of the entries at flat `positions` (K,) in (out, in); `rows` (out,) and `columns` (in,) are raised in place."""
    i, j = positions // len(columns), positions % len(columns)
    u = torch.minimum(rows[i], columns[j]).addcmul_(gradient, gradient)
    rows.scatter_reduce_(0, i, u, "amax")
    columns.scatter_reduce_(0, j, u, "amax")
    return u


def momentum_scores(rows: Tensor, columns: Tensor) -> Tensor:
    """r_i c_j (out, in): how large the squared momentum of an entry may be that was never seen."""
    return torch.outer(rows, columns)
