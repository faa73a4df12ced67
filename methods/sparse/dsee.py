"""DSEE (Chen et al. 2023, arXiv 2111.00160, Section 3): y = x (M * W)^T + (alpha / r) x (B A + Omega * S)^T + b.

W (out, in) is frozen, A (r, in) from N(0, 0.02^2), B = 0, S = 0 on the N positions of Omega. Omega, fixed all along, holds the N largest
entries of the sparse part of W (`methods/maths/grebsmo.py`); `random` and `magnitude` (largest |W|) are the official code's ablations.
Step 1 trains A, B, S and the task head. Step 2 prunes W by magnitude, the targets and all other linear maps of the blocks each by one
global threshold. Step 3 trains A, B, S on under the masks.

What ranks the targets' weights is `rank_by`: `update` (alpha / r)(B A + Omega * S), as in the official scripts, `weight` W, or `both`,
their sum. The masks act on W alone: the low-rank update is dense, so the sparsity is that of W, and the update stays beside the
pruned W in the export (`merge` folds it in and makes the targets dense). Unlike the official code the factor alpha / r is on B A and
S in every mode, and the pooler, part of the task head here, trains.

`pruning: heads` is the structured step 2 (`methods/sparse/dsee_heads.py`): every block loses `heads` heads, shapes shrink. The paper's
l1-penalised coefficients on heads and its removal of feed-forward neurons are not in the official scripts and not here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from methods.adapters.own_base import AdapterMethod, fold, insert, wrapped
from methods.adapters.wrapped import WrappedLinear, map_shape, weight_and_bias
from methods.base import Context
from methods.maths import draws
from methods.maths.grebsmo import support
from methods.maths.masks import global_masks, topk_mask
from methods.prune.removal import PREFIX, RemovalMethod
from methods.roles import prunable_parameters, role_names, weight_is_transposed
from methods.sparse.dsee_heads import Slices, choose, moved, slices
from methods.spec import Traits, UserError, choice, linear_roles, number

STD = 0.02


class DseeLinear(WrappedLinear):
    """`down` A, `up` B and `values` (N,) of S at the flat `positions` (N,) of W (out, in)."""

    def __init__(self, base: nn.Module, down: Tensor, positions: Tensor, scale: float) -> None:
        super().__init__(base)
        self.scale = scale
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(self.out_features, len(down), device=self.device))
        self.values = nn.Parameter(torch.zeros(len(positions), device=self.device))
        self.register_buffer("positions", positions.to(self.device))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), without a matrix of the weight's size."""
        y = self.base_layer(x)
        x = x.to(self.down.dtype)
        low = linear(linear(x, self.down), self.up)
        rows, columns = self.positions // self.in_features, self.positions % self.in_features
        update = low.index_add(-1, rows, (x[..., columns] * self.values).to(low.dtype))
        return y + (self.scale * update).to(y.dtype)

    @torch.no_grad()
    def update(self) -> Tensor:
        """(alpha / r) (B A + Omega * S), (out, in), float32."""
        low = self.up.float() @ self.down.float()
        return self.scale * low.flatten().index_add(0, self.positions, self.values.float()).view_as(low)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """(M * W + update, b)."""
        weight, bias = weight_and_bias(self.base_layer)
        return weight + self.update(), bias

    @torch.no_grad()
    def sliced(self, base: nn.Module, left: Slices | None) -> "DseeLinear":
        """This update on a map that lost rows or columns."""
        left = left or Slices(None, None)
        stays, positions = moved(self.positions, self.in_features, left)
        down = self.down if left.columns is None else self.down[:, left.columns.to(self.device)]
        new = DseeLinear(base, down.clone(), positions, self.scale)
        new.up.copy_(self.up if left.rows is None else self.up[left.rows.to(self.device)])
        new.values.copy_(self.values[stays])
        return new


class Dsee(AdapterMethod):
    """A low-rank and a sparse update beside weights that are pruned half-way."""

    @dataclass
    class Config:
        """`n`: N of every target. `rounds`, `threshold`: of grebsmo. `sparsity`, `sparsity_adapted`: fractions pruned of all other maps and
        of the targets. `share`: the first training's part of the budget. `pruning`: unstructured, or heads, where the two fractions do not
        count: `heads` of every block go (groups of them, where they share keys and values).
        """

        r: int
        alpha: float
        n: int
        targets: list[str]
        omega: str
        rounds: int
        threshold: float
        sparsity: float
        sparsity_adapted: float
        rank_by: str
        pruning: str
        share: float
        merge: bool
        heads: int = field(metadata={"added": 3})

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            number("method.n", self.n, 0)
            linear_roles("method.targets", self.targets)
            choice("method.omega", self.omega, ("grebsmo", "random", "magnitude"))
            number("method.rounds", self.rounds, 1)
            number("method.threshold", self.threshold, 0)
            number("method.sparsity", self.sparsity, 0, 1, open_high=True)
            number("method.sparsity_adapted", self.sparsity_adapted, 0, 1, open_high=True)
            choice("method.rank_by", self.rank_by, ("update", "weight", "both"))
            choice("method.pruning", self.pruning, ("unstructured", "heads"))
            number("method.heads", self.heads, 1)
            number("method.share", self.share, 0, 1, open_low=True, open_high=True)

        def adjust(self, traits: Traits) -> Traits:
            """Fused experts hold gate, up and down; a merged model is a stock one. Without heads it is smaller, and no weight is zero."""
            if self.pruning == "heads":
                return replace(traits, moe=False, sparse=False, reshapes=True)
            return replace(traits, moe=not {"gate", "up", "down"} & set(self.targets), folds=self.merge)

    traits = Traits(randomness=("init", "mask"), folds=False, sparse=True)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Find every Omega once, then wrap the targets."""
        self.positions = ctx.once("dsee", lambda: {name: self._positions(model, name, ctx) for name in self._names(model)})
        return super().prepare(model, ctx)

    def wrap(self, base: nn.Module, name: str, ctx: Context) -> DseeLinear:
        """The target with A drawn from (seed, name)."""
        down = draws.normal((self.config.r, map_shape(base)[1]), STD, ctx.generator(name), base.weight.device)
        return DseeLinear(base, down, self.positions[name], self.config.alpha / self.config.r)

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Train, prune, train: the masks follow from restored updates, so nothing of them is kept on disk."""
        ctx.train(model, "tune", share=self.config.share, select=False)
        if self.config.pruning == "heads":
            self._behead(model)
        else:
            prune(model, self.config.sparsity, self.config.sparsity_adapted, self.config.rank_by)
        return ctx.train(model, "retune", share=1 - self.config.share)

    def _behead(self, model: nn.Module) -> None:
        """Take the wrappers out, remove heads from the stock model, put what is left of the wrappers back."""
        layers = wrapped(model)
        scores = {name: _ranked(layer, self.config.rank_by).cpu() for name, layer in layers.items()}
        insert(model, {name: layer.base_layer for name, layer in layers.items()})
        kept = choose(model, scores, self.config.heads)
        left = slices(model, kept)
        self.removal = RemovalMethod(self.config)
        self.removal.cut(model, kept)
        self.removed = self.removal.measure(model, None)
        insert(model, {name: layer.sliced(model.get_submodule(name), left.get(name)) for name, layer in layers.items()})

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The updates stay, rounded to the dtype of their maps, or are folded in; all parameters require gradients again."""
        if self.config.merge:
            fold(model)
        for layer in wrapped(model).values():
            layer.to(layer.base_layer.weight.dtype)
        return model.requires_grad_(True)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Share of zeros in W over all prunable weights, and over the two groups; or the heads that are left."""
        if self.config.pruning == "heads":
            return self.removed
        counts = {group: _zeros(weights) for group, weights in groups(model).items()}
        zeros, total = (sum(column) for column in zip(*counts.values(), strict=True))
        return {"sparsity": zeros / total, "prunable": total} | {f"sparsity_{g}": z / n if n else 0.0 for g, (z, n) in counts.items()}

    def detach(self, model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
        """The pruned stock model, and A, B, S and Omega of every target."""
        layers = wrapped(model)
        tensors = {f"{name}.{key}": getattr(layer, key).detach() for name, layer in layers.items() for key in PARTS}
        insert(model, {name: layer.base_layer for name, layer in layers.items()})
        if self.config.pruning == "heads":
            model, kept = self.removal.detach(model)
            tensors |= kept
        return model, tensors

    def attach(self, model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
        """Remove the zeros of heads that went, wrap the targets again."""
        scale = self.config.alpha / self.config.r
        if kept := {key: index for key, index in tensors.items() if key.startswith(PREFIX)}:
            model = RemovalMethod(self.config).attach(model, kept)
        layers: dict[str, nn.Module] = {}
        for name in () if self.config.merge else self._names(model):
            own = {key: tensors[f"{name}.{key}"] for key in PARTS}
            base = model.get_submodule(name)
            layer = layers[name] = DseeLinear(base, own["down"].to(base.weight.device), own["positions"], scale)
            layer.up.data, layer.values.data = (own[key].to(base.weight.device) for key in ("up", "values"))
        insert(model, layers)
        return model

    def _names(self, model: nn.Module) -> list[str]:
        return role_names(model, self.config.targets)

    def _positions(self, model: nn.Module, name: str, ctx: Context) -> Tensor:
        """Omega of a target as ascending flat positions (N,)."""
        c, (out, into) = self.config, map_shape(model.get_submodule(name))
        if c.n > out * into:
            raise UserError(f"method.n={c.n} is more than the {out * into} weights of {name}; give a smaller method.n")
        weight = weight_and_bias(model.get_submodule(name))[0]
        if weight.is_meta:
            return torch.empty(c.n, dtype=torch.long, device="meta")
        generator = ctx.generator(f"{name}.omega")
        if c.omega == "grebsmo":
            return support(weight, c.n, c.rounds, c.threshold, generator).flatten().nonzero().flatten()
        scores = weight.abs() if c.omega == "magnitude" else draws.uniform(weight.shape, 1.0, generator, weight.device)
        return topk_mask(scores.flatten(), c.n).nonzero().flatten()


PARTS = ("down", "up", "values", "positions")


def groups(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """The prunable weights by name: those under an update, `adapted`, and the `rest`."""
    inside = {id(layer.stock().weight) for layer in wrapped(model).values()}
    weights = prunable_parameters(model)
    return {
        "adapted": {name: p for name, p in weights.items() if id(p) in inside},
        "rest": {name: p for name, p in weights.items() if id(p) not in inside},
    }


@torch.no_grad()
def prune(model: nn.Module, sparsity: float, sparsity_adapted: float, rank_by: str) -> None:
    """W <- M * W in place; each group's weights compete together. Zeros are +0."""
    split = groups(model)
    adapted = dict(_scores(model, split["adapted"], rank_by))
    rest = {name: p.detach().abs() for name, p in split["rest"].items()}
    for scores, fraction in ((adapted, sparsity_adapted), (rest, sparsity)):
        for name, mask in global_masks(scores, fraction).items() if scores else ():
            model.get_parameter(name).masked_fill_(~mask, 0)


def _scores(model: nn.Module, weights: dict[str, nn.Parameter], rank_by: str) -> Iterator[tuple[str, Tensor]]:
    """What ranks the weights under an update, in the orientation of the parameter."""
    layers = {id(layer.stock().weight): layer for layer in wrapped(model).values()}
    for name, p in weights.items():
        score = _ranked(layers[id(p)], rank_by)
        yield name, score.mT if weight_is_transposed(layers[id(p)].stock()) else score


def _ranked(layer: DseeLinear, rank_by: str) -> Tensor:
    """|update|, |W| or |W + update|, (out, in)."""
    chosen = {"update": layer.update, "weight": lambda: weight_and_bias(layer.base_layer)[0], "both": lambda: layer.folded()[0]}
    return chosen[rank_by]().abs()


def _zeros(weights: dict[str, nn.Parameter]) -> tuple[int, int]:
    """Zeros and entries."""
    return sum(int((p == 0).sum()) for p in weights.values()), sum(p.numel() for p in weights.values())
