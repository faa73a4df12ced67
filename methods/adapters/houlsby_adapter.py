"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751, Section 2.1): h <- h + W_up act(W_down h + b_down) + b_up.

W_down (k, d), W_up (d, k). One behind the output map of attention, one behind that of the feed-forward network, before the residual
sum and its LayerNorm; all LayerNorms train with them. Both matrices start from a normal distribution cut at two standard deviations
(10^-2 in Section 3.6, 10^-3 in the official code), biases at 0, so the start is near the base model. 2 d k + k + d parameters each.

The official code puts the adapter behind the dropout of the sub-layer's output, here it stands before it (`methods/adapters/serial.py`).
`targets: [down]` gives one adapter a layer, the position of Pfeiffer et al. (2021), without their change in the order of the LayerNorm.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.activations import ACT2FN

from methods.adapters.serial import Generators, SerialMethod, width_and_device
from methods.maths import draws
from methods.spec import Traits, choice, linear_roles, number


class HoulsbyAdapter(SerialMethod):
    """Two bottlenecks a layer; on a mixture of experts `down` lies in fused experts, so only attention has one there."""

    @dataclass
    class Config:
        """`bottleneck`: k. `activation`: gelu_new is the official code's tanh approximation. `norms`: train the LayerNorms too."""

        bottleneck: int
        activation: str
        init_std: float
        norms: bool
        targets: list[str]

        def __post_init__(self) -> None:
            number("method.bottleneck", self.bottleneck, 1)
            choice("method.activation", self.activation, ("gelu_new", "gelu", "relu", "silu"))
            number("method.init_std", self.init_std, 0, open_low=True)
            linear_roles("method.targets", self.targets)
            for role in self.targets:
                choice("method.targets", role, ("o", "down"))

        def adjust(self, traits: Traits) -> Traits:
            """Adapters behind attention alone work on mixtures of experts too."""
            return replace(traits, moe="down" not in self.targets)

    traits = Traits(moe=False, exact_at_init=False, folds=False, randomness=("init",))

    def adapters(self, bases: dict[str, nn.Module], generator: Generators) -> dict[str, nn.Module]:
        """One bottleneck for each map."""
        c = self.config
        return {
            name: Bottleneck(**width_and_device(base), k=c.bottleneck, act=c.activation, std=c.init_std, generator=generator(name))
            for name, base in bases.items()
        }


class Bottleneck(nn.Module):
    """f(h) = W_up act(W_down h + b_down) + b_up, float32."""

    def __init__(self, width: int, k: int, act: str, std: float, generator: torch.Generator, device: torch.device) -> None:
        super().__init__()
        self.down = nn.Parameter(draws.truncated_normal((k, width), std, generator, device))
        self.down_bias = nn.Parameter(torch.zeros(k, device=device))
        self.up = nn.Parameter(draws.truncated_normal((width, k), std, generator, device))
        self.up_bias = nn.Parameter(torch.zeros(width, device=device))
        self.act = ACT2FN[act]

    def forward(self, h: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        return linear(self.act(linear(h, self.down, self.down_bias)), self.up, self.up_bias)
