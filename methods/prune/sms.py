"""Sparse model soups (Zimmer et al. 2023, arXiv 2306.16788, Algorithm 1): P times theta_j = 1/m sum_i train_i(M_j * theta_{j-1}).

M_j keeps the (1 - s)^(j/P) n largest |theta_{j-1}|: each cycle prunes p = 1 - (1 - s)^(1/P) of what is left, once, so the m members share
the mask and their average has its zeros. Members differ in one thing (`vary`): order of the rows, learning rate or weight decay.
`soup: greedy` averages those that help on the selection rows. One member is iterative magnitude pruning.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Context, TrainSettings
from methods.maths.soup import average, distances, greedy
from methods.prune.magnitude import Magnitude
from methods.prune.masked import MaskedMethod
from methods.spec import Traits, UserError, choice, mask_shape, number


class Sms(MaskedMethod):
    """All copies of all cycles share the budget: each trains for 1 / (P m) of it under a learning-rate schedule of its own."""

    @dataclass
    class Config:
        """`sparsity` s, `scope`: row, layer or global, `cycles` P, `members` m.

        `vary`: order, lr or weight_decay. `spread` c: rate or decay of member i = 0 .. m - 1 is c^(2 i / (m - 1) - 1) times the recipe's.
        `soup`: uniform or greedy.
        """

        sparsity: float
        scope: str
        cycles: int
        members: int
        vary: str
        spread: float
        soup: str

        def __post_init__(self) -> None:
            mask_shape(self.sparsity, self.scope, "unstructured")
            number("method.cycles", self.cycles, 1)
            number("method.members", self.members, 1)
            choice("method.vary", self.vary, ("order", "lr", "weight_decay"))
            number("method.spread", self.spread, 1)
            choice("method.soup", self.soup, ("uniform", "greedy"))
            if self.vary != "order" and self.members > 1 and self.spread == 1:
                raise UserError(f"method.vary={self.vary} with method.spread=1 makes members that are all alike; give method.spread=2")

        @property
        def retrain(self) -> bool:
            """Always: a soup is of trained models."""
            return True

        def adjust(self, traits: Traits) -> Traits:
            """Orders of the rows are draws."""
            return replace(traits, randomness=("data",)) if self.vary == "order" and self.members > 1 else traits

    traits = Traits(sparse=True)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Masks that keep everything."""
        c = self.config
        ramp = {"initial_sparsity": 0.0, "initial_warmup": 0.0, "final_warmup": 0.0, "interval": 1, "allow_regrow": False}
        uniform = {"allocation": "uniform", "owl_times": 5.0, "owl_reach": 0.0}
        shape = {"sparsity": c.sparsity, "scope": c.scope, "pattern": "unstructured", **uniform}
        self.pruner = Magnitude(Magnitude.Config(**shape, retrain=True, when="iterative", cycles=c.cycles, rewind="none", **ramp))
        self.member, self.states, self.chosen = 0, [], []
        return super().prepare(model, ctx)

    def masks(self, model: nn.Module, ctx: Context) -> Iterator[tuple[str, Tensor]]:
        """(parameter name, mask) before the first cycle."""
        return self.pruner.masks(model, ctx)

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Prune once, train the members from there, average; P times."""
        c = self.config
        for cycle in range(1, c.cycles + 1):
            sparsity = c.sparsity if cycle == c.cycles else 1 - (1 - c.sparsity) ** (cycle / c.cycles)
            self.pruner.remask(model, sparsity, {})
            start = _state(model)
            self.states = [self._trained(model, ctx, start, cycle, member) for member in range(c.members)]
            self.chosen = self._chosen(model, ctx, cycle)
            _put(model, self._soup(self.chosen))
        return model

    def _trained(self, model: nn.Module, ctx: Context, start: dict[str, Tensor], cycle: int, member: int) -> dict[str, Tensor]:
        """theta_i of one member; the first sees the rows in the cell's own order."""
        c = self.config
        self.member = member
        _put(model, start)
        order = f"member-{member + 1}" if c.vary == "order" and member else ""
        name = f"cycle-{cycle}-member-{member + 1}"
        return _state(ctx.train(model, name, share=1 / (c.cycles * c.members), select=False, order=order))

    def _chosen(self, model: nn.Module, ctx: Context, cycle: int) -> list[int]:
        if self.config.soup == "uniform":
            return list(range(len(self.states)))

        def score(members: list[int]) -> float:
            _put(model, self._soup(members))
            return ctx.score(model)

        return ctx.once(f"soup-{cycle}", lambda: greedy([score([i]) for i in range(len(self.states))], score))

    def _soup(self, members: list[int]) -> dict[str, Tensor]:
        return average([self.states[i] for i in members])

    def groups(self, model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
        """The recipe's groups, with this member's learning rate or weight decay."""
        factor = self._factor(self.member)
        if self.config.vary == "lr":
            settings = replace(settings, lr=factor * settings.lr, head_lr=factor * settings.head_lr)
        elif self.config.vary == "weight_decay":
            settings = replace(settings, weight_decay=factor * settings.weight_decay)
        return super().groups(model, settings)

    def _factor(self, member: int) -> float:
        last = self.config.members - 1
        return self.config.spread ** (2 * member / last - 1) if last else 1.0

    def variants(self, model: nn.Module, ctx: Context) -> Iterator[tuple[str, nn.Module]]:
        """The soup, then the members of the last cycle."""
        yield "main", model
        for i, state in enumerate(self.states if self.config.members > 1 else ()):
            _put(model, state)
            yield f"member-{i + 1}", model
        _put(model, self._soup(self.chosen))

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Also who is in the last soup, and how far apart its members are."""
        return super().measure(model, ctx) | {"soup": [i + 1 for i in self.chosen], "distance": distances(self.states)}


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, on the CPU."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()}


@torch.no_grad()
def _put(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(state[name])
