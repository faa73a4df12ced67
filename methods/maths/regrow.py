"""Which of the K active entries of a matrix leave and which come in their place. Pure; entries are flat positions, first wins ties."""

import torch
from torch import Tensor


def smallest(sizes: Tensor, count: int) -> Tensor:
    """Places (count,) of the smallest of `sizes` (K,), the smallest first."""
    return sizes.argsort(stable=True)[:count]


def exchange(active: Tensor, sizes: Tensor, candidates: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(slots in `active`, places in `candidates` of what fills them), both (n,) with n <= count.

    The `count` smallest entries leave; the candidates with the largest scores come, unless they stay active anyway. What would leave and
    come again keeps its slot. Where fewer come than leave, the smallest leave. All positions are without repetition.
    """
    leaving = smallest(sizes, count)
    stays = torch.ones(len(active), dtype=torch.bool, device=active.device)
    stays[leaving] = False
    free = (~torch.isin(candidates, active[stays])).nonzero().flatten()
    coming = free[scores[free].argsort(descending=True, stable=True)[:count]]
    slots = leaving[~torch.isin(active[leaving], candidates[coming])]
    coming = coming[~torch.isin(candidates[coming], active[leaving])]
    count = min(len(slots), len(coming))
    return slots[:count], coming[:count]
