"""Which weights are large once a matrix has lost its small singular values. Pure; W is (out, in).

Exact: the best approximation of rank f (Eckart and Young 1936). Randomised (Halko et al. 2011, arXiv 0909.4061): that of the matrix
projected on the range of (W W^T)^p W Omega, Omega (in, 2 f) normal.
"""

import torch
from torch import Tensor

from methods.maths.lowrank import truncated_svd
from methods.maths.masks import topk_mask


@torch.no_grad()
def rank_filtered(weight: Tensor, rank: int, iterations: int | None = None, draws: torch.Generator | None = None) -> Tensor:
    """W_f (out, in), float32. `iterations`: p of the randomised form, which needs `draws` (a CPU generator); None = exact."""
    weight = weight.detach().float()
    if iterations is None:
        u, s, vt = truncated_svd(weight, rank)
        return (u * s) @ vt
    width = min(2 * rank, *weight.shape)
    omega = torch.randn(weight.shape[1], width, generator=draws).to(weight.device)
    basis = torch.linalg.qr(weight @ omega).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.mT @ basis).Q).Q
    u, s, vt = truncated_svd(basis.mT @ weight, rank)
    return basis @ ((u * s) @ vt)


def largest_positions(scores: Tensor, count: int) -> Tensor:
    """The flat positions (count,), ascending, of the largest entries of `scores`; ties go to the lowest position."""
    return topk_mask(scores.flatten(), count).nonzero().flatten()
