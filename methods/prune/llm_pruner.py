"""LLM-Pruner (Ma et al. 2023, arXiv 2305.11627, Section 3): the coupled units of least importance go, in one shot, block by block.

I_W = |g W - h W^2 / 2| entry by entry (Eq. 3 and 4: g the gradient of the loss on a few calibration sequences, h the mean of each
sequence's squared gradient), summed over a unit's entries of each map, then over its maps. A unit is a key-value head with its query
heads, or a feed-forward channel. The first and last blocks stay whole. Recovery by LoRA is a step of its own (`method=chain`). The
released code evaluates the mixed form of fused maps through a dictionary; here it is the formula.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Context
from methods.prune.removal import RemovalMethod
from methods.prune.structured import Group, groups, lowest_removed, unit_sums
from methods.roles import layers, lm_head, prunable, unwrap, weight_is_transposed
from methods.spec import Diverged, Traits, UserError, choice, number

REDUCE = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "prod": torch.prod}


class LlmPruner(RemovalMethod):
    """One-shot structured pruning by gradients; nothing is trained."""

    @dataclass
    class Config:
        """`ratio`: of the units of a block. `first`, `last`: shares of the blocks, at either end, that stay whole.

        `local`: every block loses as many; else the units of all blocks compete.
        `importance`: param_mix (both orders), param_first, param_second, vectorize (|sum of g W|), l1, l2 or random. `reduce`: over a
        unit's maps.
        """

        ratio: float
        first: float
        last: float
        importance: str
        reduce: str
        local: bool

        def __post_init__(self) -> None:
            number("method.ratio", self.ratio, 0, 1, open_high=True)
            number("method.first", self.first, 0, 1)
            number("method.last", self.last, 0, 1)
            if self.first + self.last >= 1:
                raise UserError(f"method.first={self.first} and method.last={self.last} leave no blocks to prune; give a sum below 1")
            choice("method.importance", self.importance, ("param_mix", "param_first", "param_second", "vectorize", "l1", "l2", "random"))
            choice("method.reduce", self.reduce, ("sum", "mean", "max", "prod"))

        def adjust(self, traits: Traits) -> Traits:
            """Only some importances look at data or draw."""
            looks = self.importance not in ("l1", "l2", "random")
            return replace(traits, calibration=looks, gradients=looks, randomness=("mask",) if self.importance == "random" else ())

    traits = Traits(families=("decoder",), moe=False, trains=False, exact_at_init=False, folds=False, reshapes=True, calibration=True)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Score all units on the dense model, then remove the least important."""
        model.requires_grad_(False)
        count = len(layers(model))
        ends = int(self.config.first * count), count - int(self.config.last * count)
        present = [group for group in groups(model) if ends[0] <= group.layer < ends[1]]
        if next(model.parameters()).is_meta:
            importance = {group.key: torch.zeros(group.units) for group in present}
        else:
            importance = self._importance(model, present, ctx)
        return self.cut(model, self._chosen(importance))

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Nothing trains."""
        return model

    def _chosen(self, importance: dict[str, Tensor]) -> dict[str, Tensor]:
        """Units that stay: of each group, or of all groups of a kind together, of which each keeps at least one."""
        if self.config.local:
            return {key: lowest_removed(score, int(self.config.ratio * len(score))) for key, score in importance.items()}
        kept: dict[str, Tensor] = {}
        for kind in ("heads", "channels"):
            scores = {key: score for key, score in importance.items() if key.endswith(kind)}
            best = torch.cat([score.index_fill(0, score.argmax(), torch.inf) for score in scores.values()])
            stay = torch.zeros(len(best), dtype=torch.bool)
            stay[lowest_removed(best, int(self.config.ratio * len(best)))] = True
            parts = stay.split([len(score) for score in scores.values()])
            kept |= {key: part.nonzero().flatten() for key, part in zip(scores, parts, strict=True)}
        return kept

    def _importance(self, model: nn.Module, present: list[Group], ctx: Context) -> dict[str, Tensor]:
        if self.config.importance == "random":
            return {group.key: torch.rand(group.units, generator=ctx.generator(group.key)) for group in present}
        if self.config.importance not in ("l1", "l2") and lm_head(model) is None:
            kind = unwrap(model).config.model_type
            raise UserError(
                f"method.importance={self.config.importance} takes gradients of the language-modelling loss and this {kind} has no "
                "language-model head; give method.importance=l1 here"
            )
        names = sorted({name for group in present for name in (*group.rows, *group.columns)})
        with ctx.phase("calibrate"):
            scores = self._scores(model, names, ctx)
        reduce = REDUCE[self.config.reduce]
        found = {}
        for group in present:
            parts = unit_sums(group, {name: scores[name] for name in (*group.rows, *group.columns)}).values()
            signed = [part.abs() if self.config.importance == "vectorize" else part for part in parts]
            found[group.key] = reduce(torch.stack([part.cpu() for part in signed]), 0)
        return found

    def _scores(self, model: nn.Module, names: list[str], ctx: Context) -> dict[str, Tensor]:
        """Map -> its entries' importance (out, in); signed for vectorize, which takes the sum's size."""
        modules = prunable(model)
        weights = {name: modules[name].weight for name in names}
        if self.config.importance in ("l1", "l2"):
            power = 1 if self.config.importance == "l1" else 2
            return {name: _canonical(modules[name], w.detach().float().abs() ** power) for name, w in weights.items()}
        g, h = slopes(model, weights, ctx.calibration(), squares=self.config.importance in ("param_mix", "param_second"))
        return {
            name: _canonical(modules[name], salience(w.detach().float(), g[name], h.get(name), self.config.importance))
            for name, w in weights.items()
        }


def salience(w: Tensor, g: Tensor, h: Tensor | None, kind: str) -> Tensor:
    """What the loss loses with each entry of w, to first (g w), second (h w^2) or both orders; the sign is left for vectorize alone."""
    if kind == "param_first":
        return (g * w).abs()
    if kind == "vectorize":
        return g * w
    return (h * w.square()).abs() if kind == "param_second" else (g * w - 0.5 * h * w.square()).abs()


def slopes(model: nn.Module, weights: dict[str, nn.Parameter], ids: Tensor, squares: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean over sequences of the language-modelling loss's gradient and, with `squares`, of its square; float32. `Diverged` on a NaN."""
    g = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    h = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()} if squares else {}
    for gradients in _gradients(model, weights, ids):
        for name, gradient in gradients.items():
            g[name] += gradient.float() / len(ids)
            if squares:
                h[name] += gradient.float().square() / len(ids)
    if not all(total.isfinite().all() for total in g.values()):
        raise Diverged("the gradients on the calibration text are not finite")
    return g, h


def _gradients(model: nn.Module, weights: dict[str, nn.Parameter], ids: Tensor) -> Iterator[dict[str, Tensor]]:
    """Of each sequence alone."""
    device = next(iter(weights.values())).device
    for weight in weights.values():
        weight.requires_grad_(True)
    for row in ids:
        batch = row[None].to(device)
        loss: Any = unwrap(model)(input_ids=batch, attention_mask=torch.ones_like(batch), labels=batch).loss
        yield dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    for weight in weights.values():
        weight.requires_grad_(False)


def _canonical(module: nn.Module, entries: Tensor) -> Tensor:
    return entries.mT if weight_is_transposed(module) else entries
