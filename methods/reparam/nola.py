"""NOLA (Koohpayegani et al. 2024, arXiv 2310.02556, Eq. 2): y = W x + s B A x, A = A0 + sum_i a_i M_i, B = sum_j b_j N_j, s = alpha / r.

M_i (r, in) and N_j (out, r) ~ U(-1, 1) / sqrt(k) are made from a key in every forward and backward pass and never stored; a and b
start at zero and alone are trained. The paper's equation has no A0 (`a0: false`): then a and b would never leave zero, so a starts
as N(0, 1 / in), which gives A the variance of a Kaiming start. Its code has A0 (Kaiming, frozen; here made from a key too): the default.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.adapters.own_base import AdapterMethod
from methods.adapters.wrapped import LowRankLinear
from methods.base import Context
from methods.maths import counter, draws
from methods.maths.mixture import mixture
from methods.spec import Traits, linear_roles, number


class Nola(AdapterMethod):
    """2 k parameters a target, whatever its size and r. Coefficients are vectors, so they carry no weight decay."""

    @dataclass
    class Config:
        """`k`: size of the basis of A, and of that of B. `a0`: A starts at a frozen Kaiming A0. `targets`: roles."""

        k: int
        r: int
        alpha: float
        dropout: float
        a0: bool
        targets: list[str]

        def __post_init__(self) -> None:
            number("method.k", self.k, 1)
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            number("method.dropout", self.dropout, 0, 1, open_high=True)
            linear_roles("method.targets", self.targets)

    traits = Traits(randomness=("init",), exports_lora=True)

    def wrap(self, base: nn.Module, name: str, ctx: Context) -> "NolaLinear":
        """Coefficients over bases whose keys are drawn under the target's name."""
        return NolaLinear(base, self.config, ctx.generator(f"nola {name}"))


class NolaLinear(LowRankLinear):
    """y = W x + b + s B A dropout(x)."""

    def __init__(self, base: nn.Module, config: Nola.Config, generator: torch.Generator) -> None:
        super().__init__(base, config.dropout)
        self.r, self.scale, self.a0 = config.r, config.alpha / config.r, config.a0
        self.register_buffer("keys", counter.keys(3, generator, self.device))
        std = 0.0 if config.a0 else self.in_features**-0.5
        self.a = nn.Parameter(draws.normal((config.k,), std, generator, self.device))
        self.b = nn.Parameter(torch.zeros(config.k, device=self.device))

    def chain(self) -> list[Tensor]:
        """A (r, in) and s B (out, r)."""
        key_a0, key_a, key_b = self.keys
        down = mixture(self.a, key_a, (self.r, self.in_features))
        if self.a0:
            down = down + self.start(key_a0)
        return [down, self.scale * mixture(self.b, key_b, (self.out_features, self.r))]

    def start(self, key: Tensor) -> Tensor:
        """A0 (r, in), Kaiming uniform with a = sqrt(5)."""
        values = counter.uniform(key, 0, self.r * self.in_features) * self.in_features**-0.5
        return values.view(self.r, self.in_features)
