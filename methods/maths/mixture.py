"""Mixtures of a random basis that is never stored: sum_i c_i M_i with M_i ~ U(-1, 1) / sqrt(k), made from a key where it is needed.

The mixture is linear in c, so dL/dc_i = <dL/dM, M_i>; the backward pass makes the basis again and needs the key alone.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from methods.maths import counter

CHUNK = 2**16
"""Numbers that exist at once (at least one basis element), so that they stay in a processor's cache."""


def mixture(coefficients: Tensor, key: Tensor, shape: Sequence[int]) -> Tensor:
    """sum_i c_i M_i / sqrt(k) of `shape`, for coefficients (k,) and the key (2,) of the basis; in their dtype, also under autocast."""
    return _Mixture.apply(coefficients, key, tuple(shape))


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, key: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(key)
        ctx.count = len(coefficients)
        out = coefficients.new_zeros(prod(shape))
        with torch.autocast(key.device.type, enabled=False):
            for start, basis in _chunks(key, ctx.count, out):
                out.addmv_(basis.mT, coefficients[start : start + len(basis)])
        return out.mul_(ctx.count**-0.5).view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (key,) = ctx.saved_tensors
        flat = gradient.reshape(-1)
        with torch.autocast(key.device.type, enabled=False):
            parts = [basis.mv(flat) for _, basis in _chunks(key, ctx.count, flat)]
        return torch.cat(parts).mul_(ctx.count**-0.5), None, None


def _chunks(key: Tensor, count: int, like: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(index of the first, elements (n, numel) in the dtype of `like`) of the basis, in order."""
    numel = len(like)
    step = max(1, CHUNK // numel)
    for start in range(0, count, step):
        n = min(step, count - start)
        yield start, counter.uniform(key, start * numel, n * numel).view(n, numel).to(like.dtype)
