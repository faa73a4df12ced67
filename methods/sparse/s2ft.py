"""S2FT (Yang et al. 2024, arXiv 2412.06289, Section 3): whole heads and channels train: W[rows, :] or W[:, columns] += S, S = 0 at first.

Units are drawn at random over the whole network: `int(ratio * units)` key-value groups (a head with its own query heads; every head
where heads are not grouped) for v and o, as many feed-forward channels for up and down. Coupled maps are permuted alike (gate, up and
down by channels; q, k, v and o by groups), each layer in the order [first map's only, both, second map's only, rest], so that what
trains is a dense submatrix: rows of v and up, columns of o and down. For the backward pass columns keep their slice of x and rows keep x.

The permutation changes no function and no gradient. It is made when training begins and undone when it ends, so that weights are
compared, exported and shipped in their own order. Heads are not moved, their slices are gathered, where q, k and v are one map or
other parameters know the order of heads. Ported from rotary decoders to encoders, Conv1D and grouped queries (the authors' code takes
as many key-value heads as query heads).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.own_base import AdapterMethod, insert
from methods.adapters.wrapped import WrappedLinear, map_shape
from methods.base import Context, freeze_backbone
from methods.roles import QK_NORMS, available, fused, norms, prunable, role_names, unwrap, weight_is_transposed
from methods.sparse.partial import SlicedLinear
from methods.spec import Traits, UserError, number

COUPLES = (("v", "o", ("q", "k")), ("up", "down", ("gate",)))
"""(rows of these, columns of these, and the maps whose rows follow) belong to the same units."""


@dataclass
class Couple:
    """A layer's two coupled maps and their chosen units."""

    first: str
    """Full name of v or up."""
    second: str
    """Full name of o or down."""
    followers: list[str]
    units: int
    """Key-value groups or channels of the layer."""
    moves: bool
    """May the units be permuted?"""
    of_first: set[int] = field(default_factory=set)
    of_second: set[int] = field(default_factory=set)

    @property
    def order(self) -> list[int]:
        """All units: the first map's only, both maps', the second's only, the rest."""
        chosen = [self.of_first - self.of_second, self.of_first & self.of_second, self.of_second - self.of_first]
        rest = set(range(self.units)) - self.of_first - self.of_second
        return [unit for part in (*chosen, rest) for unit in sorted(part)]

    @property
    def trained(self) -> list[tuple[str, int, list[int], int]]:
        """(map, axis, units in the permuted order, place of the first of them there) of the maps that have any."""
        parts = ((self.first, 0, self.of_first, 0), (self.second, 1, self.of_second, len(self.of_first - self.of_second)))
        return [(name, axis, [unit for unit in self.order if unit in units], start) for name, axis, units, start in parts if units]


class S2ft(AdapterMethod):
    """Some heads and channels train: as many parameters a row as the map has inputs, a column as it has outputs."""

    @dataclass
    class Config:
        """Shares of all units of the network whose rows (v, up) and columns (o, down) train."""

        v: float
        o: float
        up: float
        down: float

        def __post_init__(self) -> None:
            for key in ("v", "o", "up", "down"):
                number(f"method.{key}", getattr(self, key), 0, 1)
            if not (self.v or self.o or self.up or self.down):
                raise UserError("method.v, o, up and down are all 0, so nothing would train; give a share such as method.down=0.03")

        def adjust(self, traits: Traits) -> Traits:
            """Heads alone work on mixtures of experts too."""
            return replace(traits, moe=not (self.up or self.down))

    traits = Traits(randomness=("mask",), sparse_delta=True)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Freeze, draw the units and wrap the maps that have any; the others stay plain."""
        freeze_backbone(model)
        self.couples = [couple for roles in COUPLES for couple in self._drawn(model, *roles, ctx)]
        trained = [(name, axis, units, couple.units) for couple in self.couples for name, axis, units, _ in couple.trained]
        modules = {name: model.get_submodule(name) for name, *_ in trained}
        rows = {name: spread(units, map_shape(modules[name])[axis] // total) for name, axis, units, total in trained}
        insert(model, {name: SlicedLinear(modules[name], rows[name], axis, adds=True) for name, axis, *_ in trained})
        return model

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Train the dense submatrices."""
        with self.permuted(model):
            return ctx.train(model)

    @contextmanager
    def permuted(self, model: nn.Module) -> Iterator[None]:
        """Inside, the chosen units of every couple that may move are neighbours, and its maps use slices."""
        couples = [couple for couple in self.couples if couple.moves and couple.trained]
        for couple in couples:
            permute(model, couple, torch.tensor(couple.order))
            _slice(model, couple)
        try:
            yield
        finally:
            for couple in couples:
                permute(model, couple, torch.tensor(couple.order).argsort())
                for name, *_ in couple.trained:
                    model.get_submodule(name).span = None

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Trained units by map."""
        return {"units": {name: len(units) for couple in self.couples for name, _, units, _ in couple.trained}}

    def _drawn(self, model: nn.Module, first: str, second: str, followers: tuple[str, ...], ctx: Context) -> list[Couple]:
        """The couples of one kind in layer order with their units; none where neither share is positive."""
        if not (getattr(self.config, first) or getattr(self.config, second)):
            return []
        if first == "v" and self.config.v and fused(model):
            raise UserError(f"method.v={self.config.v} needs a v map and {_kind(model)} fuses q, k and v; give method.v=0")
        couples = coupled(model, first, second, followers)
        total = sum(couple.units for couple in couples)
        for role, chosen in ((first, "of_first"), (second, "of_second")):
            for place in self._places(role, total, model, ctx):
                layer, unit = divmod(place, couples[0].units)
                getattr(couples[layer], chosen).add(unit)
        return couples

    def _places(self, role: str, total: int, model: nn.Module, ctx: Context) -> list[int]:
        """`int(share * total)` different numbers below `total`."""
        share = getattr(self.config, role)
        count = int(share * total)
        if share and not count:
            raise UserError(f"method.{role}={share} chooses none of {total} units of {_kind(model)}; give 0 or at least {1 / total:.2g}")
        return torch.randperm(total, generator=ctx.generator(f"s2ft.{role}"))[:count].tolist()


def coupled(model: nn.Module, first: str, second: str, followers: tuple[str, ...]) -> list[Couple]:
    """The couples of a kind in layer order, without chosen units."""
    names = {role: role_names(model, [role]) for role in (first, second, *followers) if role in available(model) or role == first}
    rows = [names[role] for role in followers if role in names]
    moves = second == "down" or heads_may_move(model)
    units = _groups(model) if second == "o" else map_shape(model.get_submodule(names[second][0]))[1]
    pairs = zip(names[first], names[second], strict=True)
    return [Couple(a, b, [maps[layer] for maps in rows], units, moves) for layer, (a, b) in enumerate(pairs)]


def heads_may_move(model: nn.Module) -> bool:
    """Are q, k, v and o maps of their own and all that knows the order of heads (no other map, no normalisation across heads)?"""
    if fused(model) or not set(prunable(model)) <= set(role_names(model, available(model))):
        return False
    width = map_shape(model.get_submodule(role_names(model, ["q"])[0]))[0]
    return not any(name.endswith(QK_NORMS) and norm.weight.numel() == width for name, norm in norms(model).items())


@torch.no_grad()
def permute(model: nn.Module, couple: Couple, order: Tensor) -> None:
    """Put unit `order[i]` of a couple in place i, in all maps that know it; in place."""
    for name in (couple.first, *couple.followers):
        stock = _stock(model, name)
        rows = spread(order.tolist(), map_shape(stock)[0] // couple.units).to(stock.weight.device)
        weight = _weight(stock)
        weight.copy_(weight[rows])
        if stock.bias is not None:
            stock.bias.copy_(stock.bias[rows])
    weight = _weight(_stock(model, couple.second))
    columns = spread(order.tolist(), weight.shape[1] // couple.units).to(weight.device)
    weight.copy_(weight[:, columns])


def spread(units: list[int], size: int) -> Tensor:
    """The rows or columns of units of that size."""
    return (torch.tensor(units)[:, None] * size + torch.arange(size)).flatten()


def _slice(model: nn.Module, couple: Couple) -> None:
    for name, axis, units, start in couple.trained:
        layer = model.get_submodule(name)
        size = map_shape(layer)[axis] // couple.units
        layer.span = slice(start * size, (start + len(units)) * size)


def _stock(model: nn.Module, name: str) -> nn.Module:
    module = model.get_submodule(name)
    return module.stock() if isinstance(module, WrappedLinear) else module


def _weight(stock: nn.Module) -> Tensor:
    return stock.weight.mT if weight_is_transposed(stock) else stock.weight


def _groups(model: nn.Module) -> int:
    config = unwrap(model).config
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _kind(model: nn.Module) -> str:
    return unwrap(model).config.model_type
