"""LoLDU (Shi et al. 2024, arXiv 2410.13618): W = P L diag(d) U; W' = W_res + c P L_r diag(z) U_r, c = alpha / r; only z (r) trains.

P, L_r (m, r) and U_r (r, n) are the first r columns and rows of the pivoted LDU factors of W, W_res = W - c P L_r diag(d_r) U_r and z
starts at d_r, so the start is exact. Here W stays whole and W' = W + c P L_r diag(z - d_r) U_r: the same map without a residual to round.

The official code's starts `uniform`, `normal` and `constant` write into the storage of d, so they enter W_res too; in W' they cancel and
leave this same start. Those that do not (`ones`, `zeros`, and `standard_uniform` on [-1, 1], `standard_normal`) move the start off
the base model and are options here. Its scaling factor c is a parameter that its optimizer never gets: here a constant.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from methods.adapters.own_base import AdapterMethod
from methods.adapters.wrapped import LowRankLinear, weight_and_bias
from methods.base import Context
from methods.maths import draws
from methods.maths.ldu import ldu
from methods.spec import Traits, UserError, choice, linear_roles, number


class Loldu(AdapterMethod):
    """r parameters a target; L_r and U_r come from W again, so they are neither trained nor shipped."""

    @dataclass
    class Config:
        """`r`: pivots that train; null = all min(out, in). `init`: start of z, `lu` = d."""

        r: int | None
        alpha: float
        init: str
        targets: list[str]

        def __post_init__(self) -> None:
            if self.r is not None:
                number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            choice("method.init", self.init, ("lu", "ones", "zeros", "standard_uniform", "standard_normal"))
            linear_roles("method.targets", self.targets)

        def adjust(self, traits: Traits) -> Traits:
            """Random starts draw, other starts than `lu` are not the base model; feed-forward maps of experts are out of reach."""
            drawn = ("init",) if self.init.startswith("standard") else ()
            return replace(traits, exact_at_init=self.init == "lu", randomness=drawn, moe=not {"gate", "up", "down"} & set(self.targets))

    traits = Traits(exports_lora=True)

    def wrap(self, base: nn.Module, name: str, ctx: Context) -> LowRankLinear:
        """The map with its first r pivots free."""
        lower, d, upper = ldu(weight_and_bias(base)[0])
        r = len(d) if self.config.r is None else self.config.r
        if r > len(d):
            raise UserError(f"method.r={r} is more than the {len(d)} pivots of {name}; give at most {len(d)}, or null for all")
        z = self._start(d[:r], ctx.generator(name))
        return LolduLinear(base, lower[:, :r], d[:r], upper[:r], z, self.config.alpha / r)

    def _start(self, d: Tensor, generator: torch.Generator) -> Tensor:
        match self.config.init:
            case "lu":
                return d.clone()
            case "ones":
                return torch.ones_like(d)
            case "zeros":
                return torch.zeros_like(d)
            case "standard_uniform":
                return draws.uniform(d.shape, 1.0, generator, d.device)
            case _:
                return draws.normal(d.shape, 1.0, generator, d.device)


class LolduLinear(LowRankLinear):
    """y = W x + b + c P L_r ((z - d_r) * (U_r x))."""

    def __init__(self, base: nn.Module, lower: Tensor, d: Tensor, upper: Tensor, z: Tensor, c: float) -> None:
        super().__init__(base)
        self.c = c
        self.z = nn.Parameter(z)
        for name, factor in (("lower", lower), ("d", d), ("upper", upper)):
            self.register_buffer(name, factor.contiguous().clone())

    def chain(self) -> tuple[Tensor, Tensor, Tensor]:
        """U_r, c (z - d_r), P L_r."""
        return self.upper, self.c * (self.z - self.d), self.lower
