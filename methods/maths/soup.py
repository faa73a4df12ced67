"""Averages of models that lie in one basin (model soups; Wortsman et al. 2022, arXiv 2203.05482, Recipe 1). Pure."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def average(states: Sequence[State]) -> dict[str, Tensor]:
    """1/m sum_i theta_i, tensor by tensor, summed in float32 (float64 for float64) and given in the dtype of the first."""
    return {name: _mean([state[name] for state in states]) for name in states[0]}


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.stack([tensor.to(wide) for tensor in tensors]).mean(0).to(tensors[0].dtype)


def greedy(scores: Sequence[float], score: Callable[[list[int]], float]) -> list[int]:
    """Members of the greedy soup: from the best down, each stays if the average with it does not score less than without.

    `scores`: of the single members, larger is better; `score(chosen)`: of the average of those members. The result never scores less than
    the best member.
    """
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    chosen, best = [order[0]], scores[order[0]]
    for i in order[1:]:
        found = score([*chosen, i])
        if found >= best:
            chosen, best = [*chosen, i], found
    return chosen


def distances(states: Sequence[State]) -> dict[str, float]:
    """Largest Euclidean distance between two members, and of a member to their average."""
    points = [torch.cat([tensor.flatten().float() for tensor in state.values()]) for state in states]
    centre = torch.stack(points).mean(0)
    pairs = [float((a - b).norm()) for i, a in enumerate(points) for b in points[:i]]
    return {"between_members": max(pairs, default=0.0), "to_average": max(float((point - centre).norm()) for point in points)}
