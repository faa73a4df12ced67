"""Wanda's variant for LLaMA (the code of arXiv 2306.11695): rows lose their smallest scores up to a common share of their total. Pure."""

from torch import Tensor

TOLERANCE = 1e-3
"""Of the layer's sparsity."""
HALVINGS = 100


def cumulative_mask(score: Tensor, sparsity: float) -> Tensor:
    """Mask (out, in), True = kept: a row's smallest entries go while their sum is within alpha times the row's total.

    alpha by bisection in [0, 0.8], until the layer's sparsity is within `TOLERANCE`, or as near as ties and floats let it come.
    """
    ordered, index = score.sort(dim=-1, stable=True)
    running = ordered.cumsum(-1)
    total = running[:, -1:]
    low, high = 0.0, 0.8
    for _ in range(HALVINGS):
        alpha = (low + high) / 2
        pruned = running <= alpha * total
        reached = float(pruned.float().mean())
        if abs(reached - sparsity) <= TOLERANCE:
            break
        low, high = (alpha, high) if reached < sparsity else (low, alpha)
    return ~pruned.scatter(-1, index, pruned)
