"""LIFT (Liu et al. 2025, arXiv 2506.00772, Section 3): of each target W only the K = min(r (out + in), out in) entries train whose size
is largest in W_f, the best approximation of W of rank `filter_rank`: p[mask] <- p[mask] - lr Adam(g[mask]).

Every `interval` updates the mask is chosen anew from the present W. Moments of entries that stay in it stay, newcomers start at 0 (under
the common number of updates), leavers keep the value that they reached. So in the long run more than K weights may change, and the base
weight, which is otherwise frozen, takes the leavers' values at a refresh; `state_dict` carries it then.

Where this differs from the authors' code: the masked entries are a parameter of their own, so the gradient of a whole matrix lives from
its product to the gathering of its K entries within the backward pass of one map (theirs stays in `.grad` until the update), and the
gradient norm that clipping sees is that of the masked entries and the head. Gradients, moments and checkpoints have K entries.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.own_base import AdapterMethod, wrapped
from methods.adapters.wrapped import map_shape, weight_and_bias
from methods.base import Context, TrainSettings
from methods.maths.entry_adam import EntryAdamW
from methods.maths.rank_filter import largest_positions, rank_filtered
from methods.roles import role_names
from methods.sparse.entries import EntryLinear, entry_groups
from methods.spec import Diverged, Traits, linear_roles, number


class Lift(AdapterMethod):
    """Principal weights of the targets train, as many as LoRA of rank r has parameters."""

    @dataclass
    class Config:
        """`r`: K = r (out + in). `filter_rank`: of W_f. `interval`: updates between masks.

        `iterations`: null = exact singular values; else power iterations of the randomised form, which large matrices need.
        """

        r: int
        filter_rank: int
        interval: int
        iterations: int | None
        targets: list[str]

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            number("method.filter_rank", self.filter_rank, 1)
            number("method.interval", self.interval, 1)
            if self.iterations is not None:
                number("method.iterations", self.iterations, 0)
            linear_roles("method.targets", self.targets)

        def adjust(self, traits: Traits) -> Traits:
            """Attention-only targets work on mixtures of experts too; only the randomised form draws."""
            drawn = () if self.iterations is None else ("mask",)
            return replace(traits, moe=not {"gate", "up", "down"} & set(self.targets), randomness=drawn)

    traits = Traits(sparse_delta=True)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Choose the first mask and wrap the targets."""
        names = role_names(model, self.config.targets)
        self.positions = ctx.once("lift", lambda: {name: self._first(model.get_submodule(name), name, ctx) for name in names})
        model = super().prepare(model, ctx)
        self.layers = wrapped(model)
        self.refreshes = ctx.total_steps >= self.config.interval
        return model

    def wrap(self, base: nn.Module, name: str, ctx: Context) -> EntryLinear:
        """The target with its principal weights."""
        return EntryLinear(base, self.positions[name], adds=False)

    def optimizer(self, model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
        """AdamW with the authors' placing of eps."""
        betas = (settings.beta1, settings.beta2)
        self.adam = EntryAdamW(entry_groups(model, settings), lr=settings.lr, betas=betas, eps=settings.epsilon)
        return self.adam

    def on_update(self, model: nn.Module, step: int, ctx: Context) -> None:
        """A new mask for update number `interval`, 2 `interval` and so on."""
        if (step + 1) % self.config.interval == 0 and step < ctx.total_steps:
            for name, layer in self.layers.items():
                self._refresh(layer, name, ctx.generator(f"{name}.{step}"))

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Entries that train, and their share of the targets' weights."""
        entries = sum(len(layer.values) for layer in self.layers.values())
        return {"entries": entries, "density": entries / sum(layer.out_features * layer.in_features for layer in self.layers.values())}

    def state_dict(self) -> dict[str, Tensor]:
        """The base weights, where a refresh may change them."""
        return {name: layer.stock().weight.detach() for name, layer in self.layers.items()} if self.refreshes else {}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the base weights."""
        for name, weight in state.items():
            self.layers[name].stock().weight.copy_(weight)

    @torch.no_grad()
    def _refresh(self, layer: EntryLinear, name: str, draws: torch.Generator) -> None:
        base = layer.base()[0]
        weight = layer.part().changed(base, layer.values, torch.float32)
        if not torch.isfinite(weight).all():
            raise Diverged(f"the weights of {name} are not finite")
        new, old = self._principal(weight, len(layer.values), draws), layer.positions.long()
        stays, slots = found(new, old)
        base.copy_(weight)
        layer.positions.copy_(new)
        layer.values.copy_(torch.where(stays, layer.values[slots], weight.take(new)))
        state = self.adam.state[layer.values]
        for moment in (state["m"], state["v"]):
            moment.copy_(torch.where(stays, moment[slots], 0.0))

    def _first(self, module: nn.Module, name: str, ctx: Context) -> Tensor:
        out, into = map_shape(module)
        count = min(self.config.r * (out + into), out * into)
        if module.weight.is_meta:
            return torch.empty(count, dtype=torch.int64, device="meta")
        return self._principal(weight_and_bias(module)[0], count, ctx.generator(f"{name}.0"))

    def _principal(self, weight: Tensor, count: int, draws: torch.Generator) -> Tensor:
        """Flat positions (count,) of the principal weights, ascending."""
        filtered = rank_filtered(weight, self.config.filter_rank, self.config.iterations, draws)
        return largest_positions(filtered.abs(), count)


def found(new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """For each of `new` whether it is in `old`, and where (somewhere, if it is not); both ascending."""
    slots = torch.searchsorted(old, new).clamp(max=len(old) - 1)
    return old[slots] == new, slots
