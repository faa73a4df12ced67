"""Initial tensors from a seeded CPU generator, on any device: equal draws whatever the device, shapes alone on the meta device.

Kaiming uniform with a = sqrt(5) (He et al. 2015, arXiv 1502.01852, as torch.nn.Linear uses it) is U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Device = torch.device | str


def normal(shape: Sequence[int], std: float, generator: torch.Generator, device: Device) -> Tensor:
    """N(0, std^2), float32."""
    if torch.device(device).type == "meta":
        return torch.empty(*shape, device=device)
    return (torch.randn(*shape, generator=generator) * std).to(device)


def truncated_normal(shape: Sequence[int], std: float, generator: torch.Generator, device: Device) -> Tensor:
    """N(0, std^2) without its values beyond two standard deviations (drawn anew), float32; so its own deviation is 0.88 std."""
    if torch.device(device).type == "meta":
        return torch.empty(*shape, device=device)
    return torch.nn.init.trunc_normal_(torch.empty(*shape), 0.0, std, -2 * std, 2 * std, generator=generator).to(device)


def uniform(shape: Sequence[int], bound: float, generator: torch.Generator, device: Device) -> Tensor:
    """U(-bound, bound), float32."""
    if torch.device(device).type == "meta":
        return torch.empty(*shape, device=device)
    return ((2 * torch.rand(*shape, generator=generator) - 1) * bound).to(device)


def kaiming(shape: Sequence[int], generator: torch.Generator, device: Device) -> Tensor:
    """Kaiming uniform with a = sqrt(5) of a (fan_out, fan_in) matrix, float32."""
    return uniform(shape, shape[1] ** -0.5, generator, device)
