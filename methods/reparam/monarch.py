"""Monarch (Dao et al. 2022, arXiv 2204.00595): each W becomes P^T L P R with block-diagonal L and R (methods/maths/monarch.py).

Dense to sparse (D2S): W is replaced by the nearest such product, in closed form, and the factors are fine-tuned like any weight, with
everything else. (min(in, out)^2 + in out) / nblocks parameters a map; input padded to a multiple of nblocks, output cropped, bias dense;
a fused map of q, k and v is one map, where the paper's models have three.
The paper projects square matrices on slices of rank one; with its models' nblocks = 4 a slice has min(in, out) / nblocks^2 terms, and the
projection keeps so many singular triples of it.

Sparse to dense (S2D, the paper's reverse sparsification): with `dense_share` > 0 the factors are multiplied out before the last share
of the budget, which trains the dense weights with a new optimizer; the paper does so in pretraining.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from methods.adapters.own_base import AdapterMethod, fold, insert
from methods.adapters.wrapped import WrappedLinear, weight_and_bias
from methods.base import Context
from methods.maths.monarch import dense, factor_shapes, multiply, project
from methods.roles import role_names
from methods.spec import Traits, linear_roles, number


class MonarchLinear(WrappedLinear):
    """y = M x + b with M from w1 (nblocks, q, p) and w2 (nblocks, s, q), which train; the dense weight is dropped, the bias trains."""

    def __init__(self, base: nn.Module, w1: Tensor, w2: Tensor) -> None:
        super().__init__(base)
        self.w1, self.w2 = nn.Parameter(w1.to(self.device)), nn.Parameter(w2.to(self.device))
        self.padding = w1.shape[0] * w1.shape[2] - self.in_features
        if base.bias is not None:
            base.bias.requires_grad_(True)
        base.weight = nn.Parameter(base.weight.new_empty(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = multiply(pad(x.to(self.w1.dtype), (0, self.padding)), self.w1, self.w2)[..., : self.out_features]
        bias = self.base_layer.bias
        # a stock map gives autocast's type, whatever came in: DeBERTa's mask takes its range from a map's output
        dtype = y.dtype if torch.is_autocast_enabled(x.device.type) else x.dtype
        return (y if bias is None else y + bias).to(dtype)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """(M, b)."""
        bias = self.base_layer.bias
        return dense(self.w1, self.w2)[: self.out_features, : self.in_features], None if bias is None else bias.float()


class Monarch(AdapterMethod):
    """Project the targets, fine-tune the whole model with them as factors, multiply out at the end."""

    @dataclass
    class Config:
        """`dense_share`: share of the budget, the last, that trains the product instead of its factors. `targets`: roles."""

        nblocks: int
        dense_share: float
        targets: list[str]

        def __post_init__(self) -> None:
            number("method.nblocks", self.nblocks, 2)
            number("method.dense_share", self.dense_share, 0, 1, open_high=True)
            linear_roles("method.targets", self.targets)

        def adjust(self, traits: Traits) -> Traits:
            """Experts are fused parameters, out of reach."""
            return replace(traits, moe=not {"gate", "up", "down"} & set(self.targets))

    traits = Traits(exact_at_init=False)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Replace every target by its projection; all parameters train."""
        targets = {name: model.get_submodule(name) for name in role_names(model, self.config.targets)}
        factors = {name: ctx.once(f"projection-{name}", partial(projection, base, self.config.nblocks)) for name, base in targets.items()}
        insert(model, {name: MonarchLinear(base, **factors[name]) for name, base in targets.items()})
        return model

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Train the factors, then, if asked, their product."""
        share = self.config.dense_share
        if not share:
            return ctx.train(model)
        ctx.train(model, "monarch", share=1 - share, select=False)
        fold(model)
        return ctx.train(model, "dense", share=share)


def projection(base: nn.Module, blocks: int) -> dict[str, Tensor]:
    """`w1` and `w2` of the Monarch matrix nearest to a map's weight, padded with zeros, which does not move the optimum."""
    weight = weight_and_bias(base)[0]
    rows, columns = weight.shape
    padded = pad(weight, (0, -columns % blocks, 0, -rows % blocks))
    w1, w2 = project(padded, factor_shapes(*padded.shape, blocks))
    return {"w1": w1, "w2": w2}
