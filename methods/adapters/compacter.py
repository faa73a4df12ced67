"""Compacter (Karimi Mahabadi et al. 2021, arXiv 2106.04647, Section 4): h <- h + phi(act(phi(h; down)); up), phi(x) = x H + b.

H = sum_{i=1..n} K_i kron (s_i t_i): K (n, n, n) is one "slow" set shared by every phi of the model, s (n, in / n, q) and t (n, q, out / n)
are "fast" and each phi's own. K starts from N(0, init_std^2), each s_i and t_i Xavier uniform with gain sqrt(2), b at 0; H is then so
small that logits move by less than 1e-5. All LayerNorms train. 3 (d + k) parameters an adapter at q = 1, and n^3 once.

`targets: [o, down]` is Compacter, `[down]` is Compacter++. The bottleneck k is given itself where the official code gives d / k = 32: 24 at
the width 768 of its models. H is formed at every forward pass, as there.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from methods.adapters.serial import Generators, SerialMethod, width_and_device
from methods.maths import draws
from methods.maths.phm import kronecker_sum
from methods.spec import Traits, UserError, choice, linear_roles, number


class Compacter(SerialMethod):
    """Bottlenecks of hypercomplex maps; on a mixture of experts `down` lies in fused experts, so only attention has one there."""

    @dataclass
    class Config:
        """`bottleneck`: k. `n`: divides k and the width d. `rank`: q. `norms`: train the LayerNorms too."""

        bottleneck: int
        n: int
        rank: int
        activation: str
        init_std: float
        norms: bool
        targets: list[str]

        def __post_init__(self) -> None:
            number("method.bottleneck", self.bottleneck, 1)
            number("method.n", self.n, 1)
            number("method.rank", self.rank, 1)
            choice("method.activation", self.activation, ("gelu_new", "gelu", "relu", "silu"))
            number("method.init_std", self.init_std, 0, open_low=True)
            linear_roles("method.targets", self.targets)
            for role in self.targets:
                choice("method.targets", role, ("o", "down"))
            if self.bottleneck % self.n:
                raise UserError(f"method.n={self.n} does not divide method.bottleneck={self.bottleneck}; give a method.n that does")

        def adjust(self, traits: Traits) -> Traits:
            """Adapters behind attention alone work on mixtures of experts too; logits move with the square of K."""
            return replace(traits, moe="down" not in self.targets, exact_at_init=self.init_std <= 1e-3)

    traits = Traits(moe=False, folds=False, randomness=("init",))

    def adapters(self, bases: dict[str, nn.Module], generator: Generators) -> dict[str, nn.Module]:
        """One adapter for each map, all on the same K."""
        c, device = self.config, next(iter(bases.values())).weight.device
        rule = nn.Parameter(draws.normal((c.n, c.n, c.n), c.init_std, generator("rule"), device))
        return {
            name: PhmBottleneck(**width_and_device(base), k=c.bottleneck, q=c.rank, act=c.activation, rule=rule, generator=generator(name))
            for name, base in bases.items()
        }


class PhmBottleneck(nn.Module):
    """f(h) = phi(act(phi(h; down)); up), float32."""

    def __init__(self, width: int, k: int, q: int, act: str, rule: nn.Parameter, generator: torch.Generator, device: torch.device) -> None:
        super().__init__()
        if width % len(rule):
            raise UserError(f"method.n={len(rule)} does not divide the model's width {width}; give a method.n that does")
        self.down = Phm(width, k, q, rule, generator, device)
        self.up = Phm(k, width, q, rule, generator, device)
        self.act = ACT2FN[act]

    def forward(self, h: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        return self.up(self.act(self.down(h)))


class Phm(nn.Module):
    """phi(x) = x H + b: (..., in) -> (..., out)."""

    def __init__(self, inputs: int, outputs: int, q: int, rule: nn.Parameter, generator: torch.Generator, device: torch.device) -> None:
        super().__init__()
        n = len(rule)
        self.rule = rule
        self.left = nn.Parameter(_xavier((n, inputs // n, q), generator, device))
        self.right = nn.Parameter(_xavier((n, q, outputs // n), generator, device))
        self.bias = nn.Parameter(torch.zeros(outputs, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """x H + b."""
        return x @ kronecker_sum(self.rule, self.left, self.right) + self.bias


def _xavier(shape: tuple[int, int, int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Xavier uniform with gain sqrt(2) of each matrix (shape[1], shape[2]): its bound is sqrt(2) sqrt(6 / (fan in + fan out))."""
    return draws.uniform(shape, (12 / (shape[1] + shape[2])) ** 0.5, generator, device)
