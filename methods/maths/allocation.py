"""How much to prune where: one sparsity per weight from scores S = |W| scale of the dense model. Pure."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from methods.maths.masks import kept, kth_largest


def outlier_ratio(scores: Sequence[Tensor], times: float) -> float:
    """Share of a block's scores that exceed `times` their mean (OWL's layerwise outlier distribution; arXiv 2310.05175, Eq. 1)."""
    entries = sum(score.numel() for score in scores)
    mean = sum(float(score.sum(dtype=torch.float64)) for score in scores) / entries
    return sum(int((score > times * mean).sum()) for score in scores) / entries


def owl(ratios: Sequence[float], sparsity: float, reach: float) -> list[float]:
    """Sparsity of each block: 1 - density, where densities spread over 2 `reach` in proportion to the ratios and average 1 - `sparsity`.

    All equal where the ratios are. Yin et al. 2023 (arXiv 2310.05175).
    """
    low, high = min(ratios), max(ratios)
    if low == high:
        return [sparsity] * len(ratios)
    spread = [2 * reach * (ratio - low) / (high - low) for ratio in ratios]
    mean = sum(spread) / len(spread)
    return [sparsity - (value - mean) for value in spread]


def global_shares(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, float]:
    """Sparsity of each tensor when all their entries compete for one `sparsity`; ties at the threshold are shared in proportion."""
    total = sum(score.numel() for score in scores.values())
    keep = kept(total, sparsity)
    if keep == 0:
        return dict.fromkeys(scores, 1.0)
    threshold = kth_largest(list(scores.values()), keep)
    above = {name: int((score > threshold).sum()) for name, score in scores.items()}
    ties = {name: int((score == threshold).sum()) for name, score in scores.items()}
    share = (keep - sum(above.values())) / sum(ties.values())
    return {name: 1 - (above[name] + share * ties[name]) / score.numel() for name, score in scores.items()}
