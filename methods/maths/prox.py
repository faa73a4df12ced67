"""Proximal operators: the step after an optimizer's update that makes zeros exact. Pure."""

import torch
from torch import Tensor


def soft_threshold(v: Tensor, xi: float) -> Tensor:
    """sign(v) max(|v| - xi, 0), the proximal operator of xi |.|; a NaN stays a NaN."""
    return v - v.clamp(-xi, xi)


def hard_soft_threshold(v: Tensor, xi: float) -> Tensor:
    """sign(v) (|v| - xi) where |v| >= 2 xi, else 0: `soft_threshold` without values smaller than xi. A NaN stays a NaN."""
    return torch.where(v.abs() < 2 * xi, torch.zeros_like(v), soft_threshold(v, xi))
