"""PaCA (Woo et al. 2025, arXiv 2503.01905, Section 3): y = x W^T + b, where r random input columns W[:, I] = s P train, s = alpha / r.

P (out, r) starts at W[:, I] / s, so W is unchanged; dL/dP = s (dL/dy)^T x[..., I], for which only x[..., I] is kept. Under Adam s
multiplies the learning rate, and weight decay pulls at pretrained values (its recipes give none).

The authors copy s P into W at forward passes that a counter picks; here W' is made in every pass, so that no state and no checkpoint
has to know which copy is fresh. That costs a copy of W per pass, which dies in it.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from methods.adapters.own_base import AdapterMethod
from methods.adapters.wrapped import map_shape
from methods.base import Context
from methods.sparse.partial import SlicedLinear
from methods.spec import Traits, UserError, linear_roles, number


class Paca(AdapterMethod):
    """Some columns of the targets train; r out parameters a target."""

    @dataclass
    class Config:
        """`r`: columns of each target. `alpha`: s = alpha / r."""

        r: int
        alpha: float
        targets: list[str]

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            linear_roles("method.targets", self.targets)

        def adjust(self, traits: Traits) -> Traits:
            """Attention-only targets work on mixtures of experts too."""
            return replace(traits, moe=not {"gate", "up", "down"} & set(self.targets))

    traits = Traits(randomness=("mask",), sparse_delta=True)

    def wrap(self, base: nn.Module, name: str, ctx: Context) -> SlicedLinear:
        """The target with its columns, ascending."""
        into, r = map_shape(base)[1], self.config.r
        if r > into:
            raise UserError(f"method.r={r} is more than the {into} inputs of {name}; give a smaller method.r")
        columns = torch.randperm(into, generator=ctx.generator(f"{name}.columns"))[:r].sort().values
        return SlicedLinear(base, columns, axis=1, adds=False, scale=self.config.alpha / r)
