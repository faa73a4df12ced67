"""Dynamic sparse no training (Zhang et al. 2023, arXiv 2310.08915, Algorithm 1): swap kept and pruned weights, row by row. Pure.

d_rj = W_rj u_j is what weight (r, j) adds to row r's mean output; e_r = sum of d_rj over the pruned j is what the row lost. A cycle grows
the pruned weight whose d / var^p goes furthest in the direction of e, and prunes the kept one of the least score whose d goes against it:
e <- e + d_prune - d_grow. A weight is moved at most once; a row stops for good when |e| is within the threshold, when nothing
is left to move, or, with `same_sign`, when e would change its sign.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """When and how weights are swapped."""

    cycles: int
    threshold: float
    power: float
    """p of var^p in growing."""
    same_sign: bool


def refine(mask: Tensor, contribution: Tensor, variance: Tensor, score: Tensor, rule: Rule, group: int | None = None) -> Tensor:
    """A mask (out, in) with the row counts of `mask` (True = kept). `contribution` d (out, in), `variance` (in).

    `score` (out, in): the smallest is pruned first. With `group` = M the pruned weight lies in the grown one's group of M inputs.
    """
    state = _Rows(mask, contribution, variance, score, rule)
    prune = state.in_group if group else state.in_row
    for _ in range(rule.cycles):
        if not state.active.any():
            break
        grow = state.growing()
        state.swap(grow, prune(grow, group))
    return state.mask


class _Rows:
    """All rows at once; `order_*` hold each row's candidates, first those that count."""

    def __init__(self, mask: Tensor, d: Tensor, variance: Tensor, score: Tensor, rule: Rule) -> None:
        self.mask, self.d, self.rule = mask.clone(), d, rule
        self.error = d.masked_fill(mask, 0).sum(-1, keepdim=True)
        self.sign = self.error.sign()
        self.active = torch.ones_like(self.error, dtype=torch.bool)
        rank = d / variance.clamp_min(torch.finfo(d.dtype).tiny) ** rule.power
        self.grown = rank.masked_fill(mask, torch.inf).argsort(dim=-1, stable=True)
        self.low = torch.zeros_like(self.error, dtype=torch.long)
        self.high = (~mask).sum(-1, keepdim=True) - 1
        self.free = score.masked_fill(~mask, torch.inf)
        self.against = [self.free.masked_fill(d >= 0, torch.inf), self.free.masked_fill(d <= 0, torch.inf)]
        self.order = [free.argsort(dim=-1, stable=True) for free in self.against]
        self.used = [torch.zeros_like(self.low), torch.zeros_like(self.low)]

    def growing(self) -> Tensor:
        """Positions (out, 1) of the pruned weights to grow; rows without any stop."""
        self.active &= self.low <= self.high
        position = torch.where(self.error > 0, self.high, self.low).clamp(0, self.mask.shape[1] - 1)
        return self.grown.gather(-1, position)

    def in_row(self, grow: Tensor, group: int | None) -> Tensor:
        """Positions of the kept weights to prune: the least score against e in the row."""
        down, up = (order.gather(-1, used.clamp_max(self.mask.shape[1] - 1)) for order, used in zip(self.order, self.used, strict=True))
        chosen = torch.where(self.error > 0, down, up)
        left = [free.isfinite().sum(-1, keepdim=True) > used for free, used in zip(self.against, self.used, strict=True)]
        self.active &= torch.where(self.error > 0, left[0], left[1])
        return chosen

    def in_group(self, grow: Tensor, group: int) -> Tensor:
        """Positions of the kept weights to prune: the least score in the grown weight's group."""
        members = grow - grow % group + torch.arange(group, device=grow.device)
        scores, index = self.free.gather(-1, members).min(-1, keepdim=True)
        self.active &= scores.isfinite()
        return members.gather(-1, index)

    def swap(self, grow: Tensor, prune: Tensor) -> None:
        """One cycle: rows whose swap is refused stop."""
        after = self.error + self.d.gather(-1, prune) - self.d.gather(-1, grow)
        self.active &= self.error.abs() > self.rule.threshold
        if self.rule.same_sign:
            self.active &= after.sign() == self.sign
        up, moved = self.error > 0, self.active.long()
        self.mask.scatter_(-1, prune, self.mask.gather(-1, prune) & ~self.active)
        self.mask.scatter_(-1, grow, self.mask.gather(-1, grow) | self.active)
        self.free.scatter_(-1, prune, torch.inf)
        self.high -= moved * up
        self.low += moved * ~up
        self.used[0] += moved * up
        self.used[1] += moved * ~up
        self.error = torch.where(self.active, after, self.error)
