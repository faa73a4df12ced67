"""Random linear maps from a small space into a large one without storing a matrix: Fastfood (Le et al. 2013, arXiv 1408.3060).

P v = 1 / (c sqrt(D / L)) [H G Pi H B pad(v)]_{1..D}, c = sqrt(L sum G^2): H the Walsh-Hadamard matrix of size L = 2^l, B random signs,
Pi a random permutation, G standard normal; E |P v|^2 = |v|^2.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from methods.maths.draws import Device, normal

RADIX = 64
"""Largest Hadamard matrix that is multiplied out: H of size L is a Kronecker product of such, each a product of matrices."""


def walsh_hadamard(x: Tensor) -> Tensor:
    """H x along the last axis, whose length is a power of two: unnormalised, in Sylvester's order. O(L log L), exact under autograd."""
    length = x.shape[-1]
    if length & (length - 1):
        raise ValueError(f"a Walsh-Hadamard transform needs a power of two, not {length}")
    stride, y = 1, x
    while stride < length:
        factor = _hadamard(min(RADIX, length // stride), x.dtype, x.device)
        y = y.reshape(-1, len(factor)) @ factor if stride == 1 else factor @ y.reshape(-1, len(factor), stride)
        stride *= len(factor)
    return y.reshape(x.shape)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True)
class Fastfood:
    """P (size, d). What it multiplies v with are draws: they are made again from a seed, never stored with a model."""

    size: int
    """D: entries of the result."""
    signs: Tensor
    """B where it meets v (d,); the rest of pad(v) is 0."""
    order: Tensor
    """Pi (L,), modulo the d' of `__call__`."""
    gauss: Tensor
    """G (L,)."""

    @classmethod
    def draw(cls, size: int, d: int, generator: torch.Generator, device: Device) -> "Fastfood":
        """A random P; L is the power of two from max(size, d) on, so that all of v reaches small results too."""
        length = power_of_two(max(size, d))
        if torch.device(device).type == "meta":
            return cls(size, torch.empty(d, device=device), torch.empty(length, device=device), torch.empty(length, device=device))
        signs = 2.0 * torch.randint(2, (d,), generator=generator) - 1
        order = torch.randperm(length, generator=generator) % power_of_two(d)
        return cls(size, signs.to(device), order.to(device, torch.int32), normal((length,), 1.0, generator, device))

    def __call__(self, v: Tensor) -> Tensor:
        """P v (size,). H_L repeats H_d' down its first d' columns, d' the power of two from d on: the first transform is a small one."""
        length, d = len(self.gauss), len(v)
        small = walsh_hadamard(torch.nn.functional.pad(v * self.signs, (0, power_of_two(d) - d)))
        mixed = walsh_hadamard(self.gauss * small.index_select(0, self.order))
        return mixed[: self.size] / (length * self.gauss.square().sum() * self.size / length).sqrt()


@cache
def _hadamard(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # kept for later passes, which may need gradients
        h = torch.ones(1, 1, dtype=dtype, device=device)
        while len(h) < size:
            h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
        return h
