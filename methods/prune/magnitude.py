"""Magnitude pruning (Han et al. 2015, arXiv 1506.02626): W <- M * W, M = 1 for the (1 - s) n largest |W_ij| of each comparison scope.

`when` says how s is reached: `one_shot` before training. `iterative` (IMP): P cycles prune p = 1 - (1 - s)^(1/P) of what is left and train,
each for an equal share of the budget under a learning-rate schedule of its own; with `rewind: weights` every cycle but the first starts
from the loaded weights under its mask (lottery tickets, Frankle & Carbin 2018, arXiv 1803.03635), else from the trained ones. `gradual`
(GMP, Zhu & Gupta 2017, arXiv 1710.01878, Eq. 1): s(t) is cubic in one training, masks are made anew every `interval` updates and for a
last time when s is reached; `allow_regrow`: pruned weights keep the value that they had and compete again at every new mask (dense
masters, neither trained nor decayed meanwhile), otherwise what is pruned stays pruned.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from methods.adapters.wrapped import map_shape
from methods.base import Context
from methods.maths.allocation import global_shares
from methods.maths.masks import layer_mask, row_mask
from methods.maths.schedules import cubic, settled
from methods.maths.statistics import SquaredNorm
from methods.prune.masked import SUFFIX, MaskedMethod
from methods.prune.oneshot import dense_scores, owl_shares
from methods.roles import prunable_parameters, unwrap, weight_is_transposed
from methods.spec import Diverged, Traits, UserError, allocation_rule, choice, mask_shape, nm_pattern, number

STASH = "_pruned"
"""The values of pruned weights of parameter `weight` are the buffer `weight_pruned` of the same module."""


class Magnitude(MaskedMethod):
    """The largest weights stay, chosen once before training, again between parts of it, or during it."""

    @dataclass
    class Config:
        """`sparsity`: fraction pruned. `scope`: row, layer or global. `pattern`: unstructured, or N:M, where `scope` does not count.

        `when`: one_shot, iterative or gradual. Iterative: `cycles` P, `rewind` none or weights. Gradual: `initial_sparsity` s_0,
        `initial_warmup` and `final_warmup` (shares of the updates before and after the ramp), `interval`, `allow_regrow`.
        `allocation`: sparsity of the layers in one shot: uniform, global (as scope=global), or owl (`owl_times` = M, `owl_reach` = lambda;
        it looks at calibration text).
        """

        sparsity: float
        scope: str
        pattern: str
        retrain: bool
        when: str = field(metadata={"added": "one_shot"})
        cycles: int = field(metadata={"added": 3})
        rewind: str = field(metadata={"added": "none"})
        initial_sparsity: float = field(metadata={"added": 0.0})
        initial_warmup: float = field(metadata={"added": 0.1})
        final_warmup: float = field(metadata={"added": 0.3})
        interval: int = field(metadata={"added": 10})
        allow_regrow: bool = field(metadata={"added": True})
        allocation: str = field(metadata={"added": "uniform"})
        owl_times: float = field(metadata={"added": 5.0})
        owl_reach: float = field(metadata={"added": 0.08})

        def __post_init__(self) -> None:
            mask_shape(self.sparsity, self.scope, self.pattern)
            choice("method.when", self.when, ("one_shot", "iterative", "gradual"))
            choice("method.rewind", self.rewind, ("none", "weights"))
            number("method.cycles", self.cycles, 1)
            number("method.initial_sparsity", self.initial_sparsity, 0, self.sparsity)
            number("method.initial_warmup", self.initial_warmup, 0, 1)
            number("method.final_warmup", self.final_warmup, 0, 1 - self.initial_warmup)
            number("method.interval", self.interval, 1)
            self._check_allocation()
            if self.when != "one_shot" and not self.retrain:
                raise UserError(f"method.when={self.when} prunes while it trains; give method.retrain=true or method.when=one_shot")

        def _check_allocation(self) -> None:
            reach = self.owl_reach if self.allocation == "owl" else 0.0
            allocation_rule(self.allocation, self.owl_times, reach, self.sparsity, self.pattern)
            if self.allocation != "uniform" and (self.when != "one_shot" or self.scope == "global"):
                given = f"method.when={self.when} and method.scope={self.scope}"
                raise UserError(
                    f"method.allocation={self.allocation} is for one shot within layers and got {given}; give one_shot and layer"
                )

        def adjust(self, traits: Traits) -> Traits:
            """Without retraining nothing is trained: one shot, no data. A ramp from 0 starts at the loaded model."""
            if self.allocation == "owl":
                traits = replace(traits, calibration=True, moe=False)
            starts_dense = self.when == "iterative" or (self.when == "gradual" and self.initial_sparsity == 0)
            traits = replace(traits, exact_at_init=starts_dense)
            return traits if self.retrain else replace(traits, trains=False, gradients=False)

    traits = Traits(exact_at_init=False, sparse=True)

    def scorer(self, ctx: Context) -> Callable[[Tensor], Tensor]:
        """S = |W|."""
        return Tensor.abs

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The masks to start with, and a place for the values of what they prune where that may come back."""
        loaded = {name: p.detach().clone() for name, p in prunable_parameters(model).items()} if self._regrows() else {}
        model = super().prepare(model, ctx)
        for name, weight in loaded.items():
            module, mask = _masked(model, name)
            module.register_buffer(_stash(name), weight.mul_(~mask))
        return model

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Prune and train in turn, or train while `on_update` prunes, or under the masks of `prepare`, or not at all."""
        if self.config.when != "iterative":
            return super().fit(model, ctx)
        c = self.config
        start = {name: p.detach().clone() for name, p in model.named_parameters()} if c.rewind == "weights" else {}
        for cycle in range(1, c.cycles + 1):
            last = cycle == c.cycles
            self.remask(model, c.sparsity if last else 1 - (1 - c.sparsity) ** (cycle / c.cycles), start)
            model = ctx.train(model, f"cycle-{cycle}", share=1 / c.cycles, select=last)
        return model

    def on_update(self, model: nn.Module, step: int, ctx: Context) -> None:
        """Masked weights are zero again; in a gradual run new masks are made when it is time."""
        super().on_update(model, step, ctx)
        if self.config.when == "gradual" and self._is_time(step, ctx.total_steps):
            self.remask(model, self.level(step, ctx.total_steps), {})

    def eligible(self, step: int, ctx: Context) -> bool:
        """In a gradual run only at the final sparsity."""
        return self.config.when != "gradual" or settled(step, ctx.total_steps, self.config.final_warmup * ctx.total_steps)

    def level(self, step: int, steps: int) -> float:
        """s after `step` of `steps` updates of a gradual run."""
        c = self.config
        return cubic(step, steps, c.initial_warmup * steps, c.final_warmup * steps, c.initial_sparsity, c.sparsity)

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The stock model with exact zeros: buffers and hooks are gone."""
        for name in prunable_parameters(model) if self._regrows() else ():
            module, _ = _masked(model, name)
            delattr(module, _stash(name))
        return super().finalize(model, ctx)

    def masks(self, model: nn.Module, ctx: Context) -> Iterator[tuple[str, Tensor]]:
        """Of the final sparsity in one shot; of the first one where training raises it."""
        if self.config.when == "one_shot":
            even = self.config.allocation == "uniform" or next(model.parameters()).is_meta
            return super().masks(model, ctx) if even else self._allocated(model, ctx)
        first = self.config.initial_sparsity if self.config.when == "gradual" else 0.0
        return self._one_shot(first).masks(model, ctx)

    def _allocated(self, model: nn.Module, ctx: Context) -> Iterator[tuple[str, Tensor]]:
        """Every matrix at the sparsity that the allocation gives it."""
        scores = {name: _turned(model, name, weight.detach().abs()) for name, weight in prunable_parameters(model).items()}
        keep = row_mask if self.config.scope == "row" else layer_mask
        for name, share in self._shares(model, ctx, scores).items():
            yield name, _turned(model, name, keep(scores[name], share)).contiguous()

    def _shares(self, model: nn.Module, ctx: Context, scores: dict[str, Tensor]) -> dict[str, float]:
        """Sparsity of every parameter."""
        c = self.config
        if c.allocation == "global":
            return global_shares(scores, c.sparsity)
        norms = lambda module: SquaredNorm(map_shape(module)[1], module.weight.device)  # noqa: E731
        with ctx.phase("calibrate"):
            seen = dense_scores(model, ctx.calibration(), norms, lambda norm: norm.value.sqrt())
        shares = owl_shares(model, seen, c.sparsity, c.owl_times, c.owl_reach)
        return {f"{name}.weight": share for name, share in shares.items()}

    @torch.no_grad()
    def remask(self, model: nn.Module, sparsity: float, start: dict[str, Tensor]) -> None:
        """New masks of a sparsity; `start`: values by parameter name that all parameters go back to, under the new masks."""
        weights = prunable_parameters(model)
        made = self._one_shot(sparsity)._compare(self._scores(model), unwrap(model).config.model_type)
        masks = {name: _turned(model, name, mask) for name, mask in made}
        for name, value in start.items():
            model.get_parameter(name).copy_(value)
        for name, weight in weights.items():
            module, old = _masked(model, name)
            old.copy_(masks[name])
            if self._regrows():
                stash = module.get_buffer(_stash(name))
                whole = weight + stash
                stash.copy_(whole * ~old)
                weight.copy_(whole)
            weight.mul_(old)

    def _scores(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """|W| (..., out, in) by name; what may not come back is below all of it. `Diverged` for a NaN."""
        for name, weight in prunable_parameters(model).items():
            module, mask = _masked(model, name)
            score = (weight + module.get_buffer(_stash(name))).abs() if self._regrows() else weight.abs().masked_fill(~mask, -1.0)
            if score.isnan().any():
                raise Diverged(f"{name} became NaN")
            yield name, _turned(model, name, score)

    def _one_shot(self, sparsity: float) -> "Magnitude":
        """The method that prunes so much at once; N:M leaves as many of each M as the sparsity asks for, rounded up."""
        pattern, nm = "unstructured", nm_pattern("method.pattern", self.config.pattern)
        if nm is not None:
            kept = max(nm[0], nm[1] - int(sparsity * nm[1] + 1e-9))
            pattern = f"{kept}:{nm[1]}" if kept < nm[1] else pattern
            sparsity = 1 - kept / nm[1]
        return Magnitude(replace(self.config, sparsity=sparsity, pattern=pattern, initial_sparsity=0.0, when="one_shot"))

    def _regrows(self) -> bool:
        return self.config.when == "gradual" and self.config.allow_regrow

    def _is_time(self, step: int, steps: int) -> bool:
        """At every interval of the ramp, and at the first update after it."""
        end = self.config.final_warmup * steps
        if settled(step - 1, steps, end):
            return False
        return step % self.config.interval == 0 or settled(step, steps, end)


def _masked(model: nn.Module, name: str) -> tuple[nn.Module, Tensor]:
    """The module that holds parameter `name`, and its mask."""
    path, _, parameter = name.rpartition(".")
    module = model.get_submodule(path)
    return module, module.get_buffer(parameter + SUFFIX)


def _turned(model: nn.Module, name: str, matrix: Tensor) -> Tensor:
    """From the orientation of parameter `name` to (..., out, in), or back."""
    return matrix.mT if weight_is_transposed(model.get_submodule(name.rpartition(".")[0])) else matrix


def _stash(name: str) -> str:
    """The buffer of parameter `name` for the values of what is pruned."""
    return name.rpartition(".")[2] + STASH
