"""A chain: techniques one after another on one model, under one budget, each in a namespace of its own.

W_0 -> steps[order[0]] -> W_1 -> steps[order[1]] -> ... A step's zeros hold for the later ones (`zeros`): gradients and updates of weights
that train in place are masked, and after each step the zeros are looked at again. The last step that trains is the one whose parameters,
memory and FLOPs the record counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Batch, Context, Method, ModelSpec
from methods.roles import prunable_parameters
from methods.spec import CellNames, CellSpec, Stage, Traits, UserError, choice, number


class Chain(Method):
    """Every step's whole life, in order."""

    @dataclass
    class Config:
        """`steps`: a method's block each, by a name; `order`: these names. `shares`: of the budget, by step; empty = equal.

        `zeros`: what later steps do to the zeros of earlier ones: `keep` (refused otherwise), `mask` (pruned again afterwards), `fill`.
        """

        order: list[str]
        steps: dict[str, Any]
        shares: dict[str, float]
        zeros: str

        def __post_init__(self) -> None:
            choice("method.zeros", self.zeros, ("keep", "mask", "fill"))
            if not self.order:
                raise UserError("method.order=[] chains nothing; give method.order=[a,b] with a method block under method.steps for each")
            for name in (*self.order, *self.steps):
                if name not in self.steps or self.order.count(name) != 1:
                    raise UserError(f"method.order={self.order} must name each of method.steps={list(self.steps)} once")
            for name, share in self.shares.items():
                choice("method.shares", name, self.order)
                number(f"method.shares.{name}", share, 0, 1, open_low=True)
            if sum(self.shares.values()) > 1 + 1e-9:
                raise UserError(f"method.shares={self.shares} is more than the whole budget; give shares with a sum of at most 1")

        def stages(self) -> list[Stage]:
            """The typed steps in their order."""
            return [self.steps[name] for name in self.order]

        def adjust(self, traits: Traits) -> Traits:
            """What all steps together need and promise; refuses an order that cannot work."""
            stages = self.stages()
            for name, stage in zip(self.order[:-1], stages[:-1], strict=True):
                if not (stage.traits.folds or stage.traits.reshapes):
                    raise UserError(f"method.steps.{name}={stage.method} does not fold into plain weights, so nothing can follow it")
            self._refuse_dense_folds(stages)
            if len(left := [name for name in self.order if not self.steps[name].traits.folds]) > 1:
                raise UserError(f"method.steps.{left[0]} and {left[1]} both leave a model that no plain weights hold; give one of them")
            together = [stage.traits for stage in stages]
            return replace(
                traits,
                families=tuple(f for f in traits.families if all(f in t.families for t in together)),
                moe=all(t.moe for t in together),
                trains=any(t.trains for t in together),
                trains_head_only=all(t.trains_head_only for t in together),
                biases=any(t.biases for t in together),
                exact_at_init=False,
                folds=all(t.folds for t in together),
                gradients=any(t.gradients for t in together),
                randomness=tuple(dict.fromkeys(what for t in together for what in t.randomness)),
                calibration=any(t.calibration for t in together),
                sparse=any(t.sparse for t in together),
                budget_multiplier=max(t.budget_multiplier for t in together),
            )

        def _refuse_dense_folds(self, stages: list[Stage]) -> None:
            """A low-rank change folded over zeros fills them."""
            pruned = next((i for i, stage in enumerate(stages) if stage.traits.sparse), len(stages))
            for name, stage in zip(self.order[pruned + 1 :], stages[pruned + 1 :], strict=True):
                if self.zeros == "keep" and stage.traits.exports_lora:
                    raise UserError(
                        f"method.steps.{name}={stage.method} folds a dense change over the zeros of method.steps.{self.order[pruned]}="
                        f"{stages[pruned].method}; give method.zeros=mask (pruned again) or method.zeros=fill (lost)"
                    )

        def dependencies(self, cell: CellNames) -> tuple[CellSpec, ...]:
            """The cells that the steps need, each under its step's name."""
            able = [name for name in self.order if hasattr(self.steps[name].config, "dependencies")]
            needs = [(name, need) for name in able for need in self.steps[name].config.dependencies(cell)]
            return tuple(replace(need, name=f"{name}.{need.name}") for name, need in needs)

    traits = Traits(distributed=())

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.methods: dict[str, Method] = {name: config.steps[name].make() for name in config.order}
        trained = [name for name in config.order if config.steps[name].trains()]
        self.main = trained[-1] if trained else config.order[-1]
        cut = config.order.index(self.main)
        self.before, self.after = config.order[:cut], config.order[cut + 1 :]
        self.shares = {name: config.shares.get(name, 1 / len(trained)) for name in trained}
        self.measures: dict[str, Any] = {}
        self.zeros: dict[str, Tensor] = {}

    @property
    def unfolds(self) -> tuple[str, Method]:
        """Slug and method of the step that takes the model apart for the export: the last one that does not fold."""
        name = next(name for name in reversed(self.config.order) if not self.config.steps[name].traits.folds)
        return self.config.steps[name].method, self.methods[name]

    def load(self, spec: ModelSpec) -> ModelSpec:
        """All steps' edits, in order."""
        for method in self.methods.values():
            spec = method.load(spec)
        return spec

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The whole of the earlier steps, then the preparation of the one that is counted."""
        for name in self.before:
            model = self._whole(name, model, ctx)
        return self._prepare(self.main, model, ctx)

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The step that is counted."""
        return self._fit(self.main, model, ctx)

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The end of that step, then the whole of the later ones."""
        model = self._finalize(self.main, model, ctx)
        for name in self.after:
            model = self._whole(name, model, ctx)
        return model

    def variants(self, model: nn.Module, ctx: Context) -> Iterator[tuple[str, nn.Module]]:
        """Those of the last step."""
        yield from self.methods[self.config.order[-1]].variants(model, ctx)

    def loss(self, model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
        """That of the step that is counted; a running phase takes its own step's."""
        return self.methods[self.main].loss(model, batch, ctx)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """By step; later steps join as they end."""
        self._measure(self.main, model, ctx)
        return self.measures

    def _whole(self, name: str, model: nn.Module, ctx: Context) -> nn.Module:
        model = self._fit(name, self._prepare(name, model, ctx), ctx)
        self._measure(name, model, ctx)
        return self._finalize(name, model, ctx)

    def _prepare(self, name: str, model: nn.Module, ctx: Context) -> nn.Module:
        model.requires_grad_(True).eval()
        with ctx.stage(name, self.methods[name], self.config.steps[name].recipe, self.shares.get(name, 0.0), name == self.main):
            model = self.methods[name].prepare(model, ctx)
        self._guard(self.methods[name], model)
        return model

    def _fit(self, name: str, model: nn.Module, ctx: Context) -> nn.Module:
        with ctx.stage(name, self.methods[name], self.config.steps[name].recipe, self.shares.get(name, 0.0), name == self.main):
            return self.methods[name].fit(model, ctx)

    def _measure(self, name: str, model: nn.Module, ctx: Context) -> None:
        self.measures[name] = {"method": self.config.steps[name].method, **self.methods[name].measure(model, ctx)}

    def _finalize(self, name: str, model: nn.Module, ctx: Context) -> nn.Module:
        with ctx.stage(name, self.methods[name], self.config.steps[name].recipe, self.shares.get(name, 0.0), name == self.main):
            model = self.methods[name].finalize(model, ctx)
        self._settle(name, model)
        return model

    def _guard(self, method: Method, model: nn.Module) -> None:
        """Mask the gradients and the updates of weights that train in place and hold zeros of an earlier step."""
        weights = dict(model.named_parameters())
        held = {n: mask for n, mask in self.zeros.items() if n in weights and weights[n].requires_grad}
        if self.config.zeros == "fill" or not held:
            return
        for name, mask in held.items():
            weights[name].register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient.device))
        inner = method.on_update

        def on_update(model: nn.Module, step: int, ctx: Context) -> None:
            inner(model, step, ctx)
            put_zeros(model, held)

        method.on_update = on_update  # type: ignore[method-assign]

    def _settle(self, name: str, model: nn.Module) -> None:
        """Look at the zeros of earlier steps and keep those of this one."""
        weights = prunable_parameters(model)
        if any(weight.is_meta for weight in weights.values()):
            return
        held = {n: mask for n, mask in self.zeros.items() if n in weights and weights[n].shape == mask.shape}
        filled = [n for n, mask in held.items() if (weights[n].detach()[~mask.to(weights[n].device)] != 0).any()]
        if filled and self.config.zeros == "keep":
            slug = self.config.steps[name].method
            raise UserError(f"method.steps.{name}={slug} filled zeros of {filled[0]}; give method.zeros=mask (pruned again) or fill")
        if self.config.zeros == "mask":
            put_zeros(model, held)
        sparse = self.config.steps[name].traits.sparse
        self.zeros = {n: (w != 0).detach() for n, w in weights.items()} if sparse or held else {}


@torch.no_grad()
def put_zeros(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Multiply the named parameters by their masks; a NaN stays one."""
    weights = dict(model.named_parameters())
    for name, mask in masks.items():
        weights[name].mul_(mask.to(weights[name].device))
