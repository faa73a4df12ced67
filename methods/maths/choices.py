"""Learned choices among all N:M patterns of a group: candidates, relaxed samples, and logits that lean to a given mask. Pure.

Fang et al. 2024 (arXiv 2409.17481): M~ = softmax((kappa g + Gumbel noise) / tau) C, and g += alpha std(g) (C . M0 - mean) for a prior M0.
"""

from itertools import combinations

import torch
from torch import Tensor


def candidates(n: int, m: int, device: torch.device | str = "cpu") -> Tensor:
    """C (choices, M), float32: all patterns with N ones; for 2:4 1100, 1010, 1001, 0110, 0101, 0011."""
    kept = torch.tensor(list(combinations(range(m), n)))
    return torch.zeros(len(kept), m).scatter(1, kept, 1.0).to(device)


def gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise of a shape, from the generator of its device."""
    return -torch.empty_like(like).exponential_().log()


def soft_mask(logits: Tensor, patterns: Tensor, noise: Tensor, tau: float, kappa: float) -> Tensor:
    """M~ (out, in) in [0, 1] of logits (out, groups, choices) and patterns (choices, M), with gradients for the logits."""
    chosen = ((kappa * logits + noise) / tau).softmax(-1)
    return (chosen @ patterns).flatten(-2)


def hard_mask(logits: Tensor, patterns: Tensor) -> Tensor:
    """M (out, in), bool: the pattern of the largest logit of each group, the first one among equals."""
    best = logits.amax(-1, keepdim=True)
    first = (logits == best).int().argmax(-1)
    return patterns.bool()[first].flatten(-2)


def leaning(logits: Tensor, patterns: Tensor, mask: Tensor, strength: float) -> Tensor:
    """Logits (out, groups, choices) plus alpha std(g) times how far each pattern agrees with `mask` (out, in), against the mean pattern."""
    size = patterns.shape[-1]
    shared = mask.to(logits.dtype).unflatten(-1, (-1, size)) @ patterns.mT
    return logits + strength * logits.std() * (shared - patterns[0].sum() ** 2 / size)
