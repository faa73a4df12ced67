"""The k best entries of many tensors together. Pure; a tie goes to the first entry, row by row, in the order of the mapping."""

from collections.abc import Mapping

from torch import Tensor

from methods.maths.masks import global_masks


def topk_masks(scores: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """Masks with exactly `k` True entries in all, at the largest scores; -inf is chosen last.

    Raises:
        ValueError: `k` outside [0, number of entries], or a NaN score.
    """
    total = sum(score.numel() for score in scores.values())
    if not 0 <= k <= total:
        raise ValueError(f"k={k} is outside [0, {total}]")
    return global_masks(scores, 1 - k / total if total else 0.0)
