"""Masks with exact counts: top-k within rows, matrices or the whole model, and N:M. Pure; True = keep.

Scores are in the orientation (..., out, in); a caller with (in, out) weights transposes. Ties go to the lowest index (row-major
order, tensors in the order of the mapping), so that weights on a coarse grid still give one mask on every device. A fraction
s of n entries prunes round(s n) of them, as `torch.nn.utils.prune` does. Sources: Han et al. 2015 (arXiv 1506.02626);
Zhou et al. 2021 (arXiv 2102.04010) for N:M.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def kept(n: int, sparsity: float) -> int:
    """How many of n entries stay at a sparsity (fraction pruned)."""
    return n - round(sparsity * n)


def topk_mask(scores: Tensor, keep: int) -> Tensor:
    """Mask (same shape) of the `keep` largest entries of each slice along the last dimension.

    Raises:
        ValueError: `keep` outside [0, last dimension], or a NaN score.
    """
    n = scores.shape[-1]
    if not 0 <= keep <= n:
        raise ValueError(f"keep={keep} is outside [0, {n}]")
    _refuse_nan(scores)
    if keep in (0, n):
        return torch.full_like(scores, bool(keep), dtype=torch.bool)
    threshold = scores.kthvalue(n - keep + 1, dim=-1, keepdim=True).values
    mask = scores > threshold
    return mask.logical_or_(_first(scores == threshold, keep - mask.sum(-1, keepdim=True)))


def row_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Mask in which each row of `scores` (..., out, in), one output's weights, has `sparsity`."""
    return topk_mask(scores, kept(scores.shape[-1], sparsity))


def layer_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Mask in which each matrix of `scores` (..., out, in) has `sparsity`; a fused (experts, out, in) tensor per expert."""
    flat = scores.flatten(-2)
    return topk_mask(flat, kept(flat.shape[-1], sparsity)).reshape(scores.shape)


def global_masks(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks in which all entries of all tensors compete for one `sparsity`; needs no copy of the scores as a whole."""
    for score in scores.values():
        _refuse_nan(score)
    keep = kept(sum(score.numel() for score in scores.values()), sparsity)
    if keep == 0:
        return {name: torch.zeros_like(score, dtype=torch.bool) for name, score in scores.items()}
    threshold = kth_largest(list(scores.values()), keep)
    masks = {name: score > threshold for name, score in scores.items()}
    missing = keep - sum(int(mask.sum()) for mask in masks.values())
    for name, score in scores.items():
        ties = (score == threshold).flatten()
        masks[name].logical_or_(_first(ties, missing).view(score.shape))
        missing = max(0, missing - int(ties.sum()))
    return masks


def kth_largest(tensors: list[Tensor], k: int) -> float:
    """The k-th largest (k >= 1) of all entries, exactly: bisection over the ordered bit patterns of float32 (or float64)."""
    integer, floating = (torch.int64, torch.float64) if any(t.dtype == torch.float64 for t in tensors) else (torch.int32, torch.float32)
    high = int(torch.tensor(torch.inf, dtype=floating).view(integer).item())
    low = -high - 1
    while low < high:
        middle = (low + high + 1) // 2
        value = _value(middle, integer, floating)
        enough = sum(int((t.to(floating) >= value).sum()) for t in tensors) >= k
        low, high = (middle, high) if enough else (low, middle - 1)
    return _value(low, integer, floating)


def nm_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """Mask that keeps the `n` largest of each `m` consecutive inputs of `scores` (..., out, in).

    Raises:
        ValueError: the input dimension is not divisible by `m`.
    """
    if scores.shape[-1] % m:
        raise ValueError(f"the input dimension {scores.shape[-1]} is not divisible by {m}")
    return topk_mask(scores.unflatten(-1, (-1, m)), n).flatten(-2)


def _first(ties: Tensor, count: Tensor | int) -> Tensor:
    """The first `count` True entries along the last dimension."""
    return ties.logical_and(ties.cumsum(-1, dtype=torch.int32 if ties.shape[-1] < 2**31 else torch.int64) <= count)


def _value(code: int, integer: torch.dtype, floating: torch.dtype) -> float:
    """The float of rank `code` among all floats of that width; from -inf up to inf the codes are -high - 1 to high."""
    bits = code if code >= 0 else torch.iinfo(integer).min - 1 - code
    return torch.tensor(bits, dtype=integer).view(floating).item()


def _refuse_nan(scores: Tensor) -> None:
    if scores.is_floating_point() and scores.isnan().any():
        raise ValueError("a NaN score has no rank")
