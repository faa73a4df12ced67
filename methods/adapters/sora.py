"""SoRA (Ding et al. 2023, arXiv 2311.11696, Eq. 5-8): y = W x + s B (g * (A x)), s = alpha / r; g <- T_xi(g) after every update of Adam.

A (r, in) Kaiming, B (out, r) zero, gates g ~ N(0, 1) without weight decay. T_xi(v) = sign(v) max(|v| - xi, 0) solves for an L1 penalty.
A gate that is zero is not masked: a step larger than xi revives it. What is left at the end is a LoRA of rank nnz(g) at the same s.

The code of the paper differs from its equations in ways that are options here: it also adds `penalty` mean |g| to the loss; xi is constant,
not the learning rate times lambda (`threshold: lr`); its T_xi is zero below 2 xi (`prox: official`, the default is the equation); it trains
the backbone's normalisations too (`norms`, off: the counts of the paper hold adapters alone). Its schedule goes on with the exhausted
learning rate schedule of the first stage, so at rate zero; here every stage has a schedule of its own, as Algorithm 1 says.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.own_base import AdapterMethod, keep, refold
from methods.adapters.wrapped import LowRankLinear
from methods.base import Batch, Context, TrainSettings
from methods.maths import draws
from methods.maths.prox import hard_soft_threshold, soft_threshold
from methods.roles import norms
from methods.spec import Traits, UserError, choice, linear_roles, number

PROX = {"soft": soft_threshold, "official": hard_soft_threshold}


class Sora(AdapterMethod):
    """r (in + out + 1) parameters a target in training, nnz(g) (in + out) after it."""

    @dataclass
    class Config:
        """`xi`: threshold after each update; with `threshold: lr` times the learning rate of the gates. `targets`: roles.

        `schedule`: how xi rises from `xi` to `xi_max` over `stages` trainings, which share the budget equally; `none` = one training.
        """

        r: int
        alpha: float
        dropout: float
        penalty: float
        xi: float
        prox: str
        threshold: str
        schedule: str
        xi_max: float
        stages: int
        norms: bool
        targets: list[str]

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            number("method.dropout", self.dropout, 0, 1, open_high=True)
            number("method.penalty", self.penalty, 0)
            number("method.xi", self.xi, 0)
            choice("method.prox", self.prox, ("soft", "official"))
            choice("method.threshold", self.threshold, ("constant", "lr"))
            choice("method.schedule", self.schedule, ("none", "linear", "log_linear", "exp_linear"))
            linear_roles("method.targets", self.targets)
            if self.schedule != "none":
                number("method.stages", self.stages, 2)
                number("method.xi_max", self.xi_max, self.xi, open_low=True)
            if self.schedule == "exp_linear" and not self.xi:
                raise UserError("method.schedule=exp_linear starts at the logarithm of method.xi=0; give method.xi above 0, or linear")

        def adjust(self, traits: Traits) -> Traits:
            """Attention-only targets work on mixtures of experts; trained normalisations are no part of a LoRA."""
            return replace(traits, moe=not {"gate", "up", "down"} & set(self.targets), exports_lora=not self.norms)

    traits = Traits(randomness=("init",), moe=False, exports_lora=True)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Wrap the targets; with `norms` the backbone's normalisations train too."""
        model = super().prepare(model, ctx)
        for norm in norms(model).values() if self.config.norms else ():
            norm.requires_grad_(True)
        return model

    def wrap(self, base: nn.Module, name: str, ctx: Context) -> "SoraLinear":
        """Factors and gates drawn under the target's name."""
        return SoraLinear(base, self.config, ctx.generator(f"sora {name}"))

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """One training for each xi, every one from where the last ended; the last alone may select a checkpoint."""
        thresholds = schedule(self.config)
        self.stages: list[Stage] = []
        for index, self.xi in enumerate(thresholds):
            last = index == len(thresholds) - 1
            phase = "main" if len(thresholds) == 1 else f"xi{index}"
            model = ctx.train(model, phase, share=1 / len(thresholds), select=last)
            self.stages.append(Stage(self.xi, ranks(model), None if last else trained(model)))
        return model

    def optimizer(self, model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
        """AdamW; vectors, so the gates too, carry no decay. It is kept for the learning rate of an update."""
        self.adam = super().optimizer(model, settings)
        return self.adam

    def loss(self, model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
        """The model's loss + penalty mean |g| over all gates."""
        loss = super().loss(model, batch, ctx)
        return loss + self.config.penalty * torch.cat(list(gates(model).values())).abs().mean() if self.config.penalty else loss

    @torch.no_grad()
    def on_update(self, model: nn.Module, step: int, ctx: Context) -> None:
        """The proximal step."""
        prox = PROX[self.config.prox]
        for gate in gates(model).values():
            gate.copy_(prox(gate, self.xi * (self._rate(gate) if self.config.threshold == "lr" else 1.0)))

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Rank by target, what is kept of gates and parameters, and the gates that were left at each xi."""
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SoraLinear)}
        kept = {name: layer.rank() for name, layer in layers.items()}
        return {
            "rank_by_target": kept,
            "gates": sum(layer.r for layer in layers.values()),
            "kept_gates": sum(kept.values()),
            "kept_parameters": sum(kept[name] * (layer.in_features + layer.out_features) for name, layer in layers.items()),
            "stages": [{"xi": stage.xi, "kept_gates": sum(stage.ranks)} for stage in self.stages],
        }

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The stock model; under a schedule what trained stays for `variants`."""
        self.kept, self.trained = keep(model), {name: p for name, p in model.named_parameters() if p.requires_grad}
        return super().finalize(model, ctx)

    def variants(self, model: nn.Module, ctx: Context) -> Iterator[tuple[str, nn.Module]]:
        """`main` is the end of the last stage, `xi<value>` that of an earlier one: the same model until the next is asked for."""
        yield "main", model
        earlier = [stage for stage in self.stages if stage.state is not None]
        if not earlier:
            return
        end = {name: p.detach().clone() for name, p in self.trained.items()}
        try:
            for stage in earlier:
                self._fold(stage.state)
                yield f"xi{stage.xi:g}", model
        finally:
            self._fold(end)

    @torch.no_grad()
    def _fold(self, state: dict[str, Tensor]) -> None:
        for name, tensor in state.items():
            self.trained[name].copy_(tensor)
        refold(self.kept)

    def _rate(self, gate: nn.Parameter) -> float:
        return next(group["lr"] for group in self.adam.param_groups if any(p is gate for p in group["params"]))


class SoraLinear(LowRankLinear):
    """y = W x + b + B (s g * (A dropout(x)))."""

    def __init__(self, base: nn.Module, config: Sora.Config, generator: torch.Generator) -> None:
        super().__init__(base, config.dropout)
        self.r, self.scale = config.r, config.alpha / config.r
        self.A = nn.Parameter(draws.kaiming((config.r, self.in_features), generator, self.device))
        self.g = nn.Parameter(draws.normal((config.r,), 1.0, generator, self.device))
        self.B = nn.Parameter(torch.zeros(self.out_features, config.r, device=self.device))

    def chain(self) -> list[Tensor]:
        """A (r, in), s g (r), B (out, r)."""
        return [self.A, self.scale * self.g, self.B]

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor]:
        """(s B g, A) without the ranks whose gate is zero."""
        up, down = super().factors()
        open_gates = self.g != 0
        return up[:, open_gates], down[open_gates]

    def rank(self) -> int:
        """nnz(g)."""
        return int(torch.count_nonzero(self.g))


@dataclass
class Stage:
    """The end of one training of the schedule."""

    xi: float
    ranks: list[int]
    """By target."""
    state: dict[str, Tensor] | None
    """What trained, on the CPU; None for the last stage, which the model itself holds."""


def schedule(config: Sora.Config) -> list[float]:
    """The thresholds of the stages: equally spaced themselves, in their exponentials (log_linear) or in their logarithms (exp_linear)."""
    low, high = config.xi, config.xi_max
    if config.schedule == "none":
        return [low]
    forward, back = {
        "linear": (lambda x: x, lambda x: x),
        "log_linear": (math.exp, math.log),
        "exp_linear": (math.log, math.exp),
    }[config.schedule]
    start, step = forward(low), (forward(high) - forward(low)) / (config.stages - 1)
    return [low, *(back(start + step * index) for index in range(1, config.stages - 1)), high]


def gates(model: nn.Module) -> dict[str, nn.Parameter]:
    """g of every target, by the target's name."""
    return {name: layer.g for name, layer in model.named_modules() if isinstance(layer, SoraLinear)}


def ranks(model: nn.Module) -> list[int]:
    """nnz(g) of every target."""
    return [int(torch.count_nonzero(gate)) for gate in gates(model).values()]


def trained(model: nn.Module) -> dict[str, Tensor]:
    """A copy on the CPU of all parameters that train."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if p.requires_grad}
