"""LoRAPrune (Zhang et al. 2023, arXiv 2305.18403, Eq. 5-8): heads and channels are masked while LoRA trains, and removed at the end.

G = dB A + B dA - dB dA, what one SGD step does to B A; I = |G (W + s B A)| entry by entry, s = alpha / r. A unit's importance: the
sums of I over its entries in each map, each map's vector divided by its norm, added over the maps of the block; then
I_t = 0.9 I_{t-1} + 0.1 I. Every `every` updates a block's int(ratio(t) n) least important units are masked, ratio(t) cubic; what is
masked stays so. The mask multiplies the outputs of q, k, v, gate and up.

The code of the paper prunes only while the ratio rises, so its last int(ratio n) is that of the last multiple of `every` before; here the
final ratio is reached. Key-value heads go with all their query heads, where the code takes as many of both.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.own_base import fold, insert
from methods.adapters.wrapped import LowRankLinear, weight_and_bias
from methods.base import Context, freeze_backbone
from methods.maths import draws
from methods.maths.schedules import cubic, settled
from methods.prune.removal import RemovalMethod
from methods.prune.structured import Group, groups, lowest_removed, unit_sums
from methods.roles import layers
from methods.spec import Traits, UserError, choice, number

SMOOTHING = 0.9


class Loraprune(RemovalMethod):
    """LoRA on all maps of the blocks, r (in + out) parameters each; the finished model is smaller."""

    @dataclass
    class Config:
        """`ratio`: of the units of a block. `first`: share of the blocks at the start, `last`: number of blocks at the end, that stay.

        `warmup`, `cooldown`: shares of the updates before the ratio rises and after it. `importance`: lora (G), magnitude (G = 1).
        """

        ratio: float
        r: int
        alpha: float
        dropout: float
        warmup: float
        cooldown: float
        every: int
        first: float
        last: int
        importance: str

        def __post_init__(self) -> None:
            number("method.ratio", self.ratio, 0, 1, open_high=True)
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            number("method.dropout", self.dropout, 0, 1, open_high=True)
            number("method.warmup", self.warmup, 0, 1)
            number("method.cooldown", self.cooldown, 0, 1)
            number("method.every", self.every, 1)
            number("method.first", self.first, 0, 1)
            number("method.last", self.last, 0)
            choice("method.importance", self.importance, ("lora", "magnitude"))
            if self.warmup + self.cooldown >= 1:
                raise UserError(f"method.warmup={self.warmup} and cooldown={self.cooldown} leave no updates to prune in; give less than 1")

    traits = Traits(moe=False, folds=False, reshapes=True, randomness=("init",))

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Freeze, and wrap every map of the blocks; the unpruned blocks have LoRA too."""
        freeze_backbone(model)
        present = groups(model)
        count = len(layers(model))
        self.pruned = [g for g in present if int(self.config.first * count) <= g.layer < count - self.config.last]
        if not self.pruned:
            raise UserError(f"method.first={self.config.first} and last={self.config.last} leave none of {count} blocks; give smaller ones")
        names = list(dict.fromkeys(name for group in present for name in (*group.rows, *group.columns)))
        self.layers = {name: PrunedLora(model.get_submodule(name), self.config, ctx.generator(name)) for name in names}
        insert(model, self.layers)
        self.importance = {group.key: torch.zeros(group.units) for group in self.pruned}
        self.alive = {group.key: torch.ones(group.units, dtype=torch.bool) for group in self.pruned}
        return model

    @torch.no_grad()
    def on_gradients(self, model: nn.Module, step: int, ctx: Context) -> None:
        """Take the gradients of A and B into the importance of every unit."""
        for group in self.pruned:
            scores = {name: self.layers[name].scores(self.config.importance) for name in (*group.rows, *group.columns)}
            parts = torch.stack([(part / part.norm().clamp_min(1e-30)).cpu() for part in unit_sums(group, scores).values()])
            self.importance[group.key] = SMOOTHING * self.importance[group.key] + (1 - SMOOTHING) * parts.sum(0)

    @torch.no_grad()
    def on_update(self, model: nn.Module, step: int, ctx: Context) -> None:
        """Mask on multiples of `every`, and once more when the final ratio is reached."""
        total = ctx.total_steps
        reached = self._settled(step, total) and not self._settled(step - 1, total)
        if not reached and (step % self.config.every or self._settled(step, total)):
            return
        for group in self.pruned:
            self._mask(group, int(self.ratio(step, total) * group.units))

    def ratio(self, step: int, total: int) -> float:
        """ratio(t)."""
        return cubic(step, total, self.config.warmup * total, self.config.cooldown * total, 0.0, self.config.ratio)

    def eligible(self, step: int, ctx: Context) -> bool:
        """Only at the final ratio."""
        return self._settled(step, ctx.total_steps)

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Merge LoRA, then remove the masked units."""
        fold(model)
        return self.cut(model, {key: alive.nonzero().flatten() for key, alive in self.alive.items()}).requires_grad_(True)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Units that stay, by group."""
        return {"kept_units": {key: [int(alive.sum()), len(alive)] for key, alive in self.alive.items()}}

    def state_dict(self) -> dict[str, Tensor]:
        """Smoothed importances and living units."""
        return {f"importance.{key}": v for key, v in self.importance.items()} | {f"alive.{key}": v for key, v in self.alive.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The masks of the layers are buffers of theirs."""
        self.importance = {key: state[f"importance.{key}"] for key in self.importance}
        self.alive = {key: state[f"alive.{key}"] for key in self.alive}

    def _settled(self, step: int, total: int) -> bool:
        return settled(step, total, self.config.cooldown * total)

    def _mask(self, group: Group, count: int) -> None:
        """Mask the `count` least important units; dead ones count as least."""
        alive = self.alive[group.key]
        living = self.importance[group.key].masked_fill(~alive, -1.0)
        alive = torch.zeros_like(alive).index_fill(0, lowest_removed(living, max(count, int((~alive).sum()))), True)
        self.alive[group.key] = alive
        for name, rows in group.rows.items():
            self.layers[name].mask[rows[~alive].flatten().to(self.layers[name].device)] = 0


class PrunedLora(LowRankLinear):
    """y = M (W x + b + s B A x): a mask M (out) over the outputs."""

    def __init__(self, base: nn.Module, config: Loraprune.Config, generator: torch.Generator) -> None:
        super().__init__(base, config.dropout)
        self.scale = config.alpha / config.r
        self.A = nn.Parameter(draws.kaiming((config.r, self.in_features), generator, self.device))
        self.B = nn.Parameter(torch.zeros(self.out_features, config.r, device=self.device))
        self.register_buffer("mask", torch.ones(self.out_features, device=self.device))

    def chain(self) -> list[Tensor]:
        """A (r, in), B (out, r), s."""
        return [self.A, self.B, torch.tensor(self.scale, device=self.device)]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = super().forward(x)
        return y * self.mask.to(y.dtype)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """(M (W + s B A), M b)."""
        weight, bias = super().folded()
        return weight * self.mask[:, None], None if bias is None else bias * self.mask

    @torch.no_grad()
    def scores(self, kind: str) -> Tensor:
        """I (out, in), float32."""
        weight = weight_and_bias(self.base_layer)[0] + self.scale * (self.B @ self.A)
        return weight.abs() if kind == "magnitude" else (step_of_product(self.B, self.A, self.B.grad, self.A.grad) * weight).abs()


def step_of_product(b: Tensor, a: Tensor, db: Tensor, da: Tensor) -> Tensor:
    """B A - (B - dB) (A - dA)."""
    return db @ a + b @ da - db @ da
