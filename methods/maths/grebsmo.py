"""The sparse part of a weight by greedy bilateral smoothing, as DSEE (Chen et al. 2023, arXiv 2111.00160) uses it: W ~ U V + S. Pure.

Start V (1, in) Gaussian. Each round, from S = 0, twice: U = orth((W - S) V^T), V = U^T (W - S), S = W - U V with entries below a threshold
set to 0. Then V gains the first rows of R from the QR factors of W - U V - S, so the rank grows from round to round.

The official code runs 100 rounds, to rank 501 of 768. A narrower matrix is represented whole before that and leaves S empty: here the
rounds end before the one whose S has fewer entries than are asked for, or whose rank is that of a whole matrix.
"""

import torch
from torch import Tensor

from methods.maths.draws import normal
from methods.maths.masks import topk_mask

INNER, GROWTH = 2, 5
"""Smoothing steps of a round, and rows that V gains after it."""


@torch.no_grad()
def support(weight: Tensor, n: int, rounds: int, threshold: float, generator: torch.Generator) -> Tensor:
    """Mask (out, in) of the `n` largest |S|; ties go to the first.

    In float64, since rounding grows from round to round: two devices may still end with other entries, so the mask is to be kept.
    """
    weight = weight.double()
    v, best = smoothed(weight, normal((1, weight.shape[1]), 1.0, generator, weight.device).double(), threshold)
    for _ in range(rounds - 1):
        rest = torch.where(best.abs() >= threshold, 0, best)
        v, residual = smoothed(weight, torch.cat([v, first_rows(rest)]), threshold)
        if int((residual.abs() >= threshold).sum()) < n or len(v) >= min(weight.shape):
            break
        best = residual
    return topk_mask(best.abs().flatten(), n).view(weight.shape)


def smoothed(weight: Tensor, v: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """One round without growth: V (r, in) and W - U V (out, in), of which S is what reaches the threshold."""
    s = torch.zeros_like(weight)
    residual = s
    for _ in range(INNER):
        u = torch.linalg.qr((weight - s) @ v.mT).Q
        v = u.mT @ (weight - s)
        residual = weight - u @ v
        s = torch.where(residual.abs() < threshold, 0, residual)
    return v, residual


def first_rows(rest: Tensor) -> Tensor:
    """The first `GROWTH` rows of R of QR = `rest` (out, in), without the other ones: they need its first columns alone."""
    return torch.linalg.qr(rest[:, :GROWTH]).Q.mT @ rest
