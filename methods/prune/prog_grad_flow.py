"""Progressive gradient flow (Bambhaniya et al. 2024, arXiv 2402.04744): N:M training in three phases, dense, decaying, hard.

y = x (W * (M_t + (1 - M_t) beta(t)))^T + b, M_t = the N largest |W| of each M consecutive inputs, made anew in every forward pass from
the dense W, which gets the straight-through gradient. t = updates since the dense phase. MdGF decays the mask: beta = max(1 - k t, 0)
(`mask_linear`) or exp(-k t) (`mask_exponential`). SdGF, with beta = 0, makes the pattern sparser in stages of equal length:
(M-1):M, M/2:M, M/4:M, ..., N:M (`structure_stepwise`) or 8N:8M, 4N:4M, 2N:2M, N:M (`structure_geometric`). The baseline SR-STE
(Zhou et al. 2021, arXiv 2102.04010; `sr_ste`) has the hard mask after the dense phase and adds lambda (1 - M) * W to the gradient.
In the hard phase the mask is N:M with beta = 0, and W still gets dense gradients.

Where this differs: `decay` is null by default, which fits k to the decaying phase (linear: beta = 0 at its end; exponential: 0.01), since
the code's 2e-4 is for tens of thousands of updates. The code gives the last of the stepwise patterns no time before the hard phase;
here each has an equal share, as the paper says. `scaled_gradient: true` multiplies the gradient by M + (1 - M) beta as well.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.wrapped import map_shape, weight_and_bias
from methods.base import Context, Method, TrainSettings
from methods.maths.nm_flow import (
    Flow,
    FlowLinear,
    decay_gradient,
    exponential_beta,
    geometric,
    linear_beta,
    magnitude_mask,
    shown,
    stage,
    stepwise,
)
from methods.maths.rows import Rows
from methods.roles import prunable, unwrap, weight_is_transposed
from methods.sparse.scored import Level, ScoredLinear, ScoredMethod, scored
from methods.spec import Traits, UserError, choice, nm_pattern, number

DENSE = Flow(1, 1, 1.0)
LEFT = 0.01
"""beta of the exponential decay at the end of its phase where `decay` is null."""


class NmLinear(ScoredLinear):
    """W itself trains under the mask of its own magnitudes; `level.value` is the `Flow` of all layers."""

    def __init__(self, base: nn.Module, level: Level, rows: Rows, scaled: bool) -> None:
        """`scaled`: does beta multiply the gradient too?"""
        super().__init__(base, level, rows)
        base.requires_grad_(True)
        self.scaled = scaled

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        flow: Flow = self.level.value
        if flow == DENSE:
            return self.base_layer(x)
        stock = self.stock()
        return FlowLinear.apply(x, oriented(stock), stock.bias, self.mask(), flow.beta, self.scaled)

    @torch.no_grad()
    def mask(self) -> Tensor:
        """M (out, in), bool, from the weight as it is."""
        return magnitude_mask(oriented(self.stock()), self.level.value.n, self.level.value.m)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """(W * (M + (1 - M) beta), b); (M * W, b) in the hard phase."""
        weight, bias = weight_and_bias(self.base_layer)
        return shown(weight, self.mask(), self.level.value.beta), bias

    @torch.no_grad()
    def penalise(self, rate: float) -> None:
        """Add lambda (1 - M) * W to the gradient of W."""
        stock = self.stock()
        if stock.weight.grad is not None:
            extra = decay_gradient(oriented(stock), self.mask(), rate)
            stock.weight.grad.add_(extra.mT if weight_is_transposed(stock) else extra)


class ProgGradFlow(ScoredMethod):
    """All but the embeddings trains; every linear map of the blocks ends N:M."""

    @dataclass
    class Config:
        """`mode`: see above. `pattern`: N:M. `dense`, `hard`: shares of the updates of the first and the last phase.

        `decay`: k per update of the mask modes; null = fitted to the phase. `penalty`: lambda of SR-STE.
        """

        mode: str
        pattern: str
        dense: float
        hard: float
        decay: float | None
        scaled_gradient: bool
        penalty: float

        def __post_init__(self) -> None:
            choice("method.mode", self.mode, ("mask_linear", "mask_exponential", "structure_stepwise", "structure_geometric", "sr_ste"))
            nm = nm_pattern("method.pattern", self.pattern)
            if nm is None:
                raise UserError("method.pattern=unstructured is not allowed; allowed: N:M with 0 < N < M such as 2:4")
            number("method.dense", self.dense, 0, 1, open_high=True)
            number("method.hard", self.hard, 0, 1 - self.dense)
            number("method.penalty", self.penalty, 0)
            if self.decay is not None:
                number("method.decay", self.decay, 0, open_low=True)
            if self.mode == "structure_stepwise" and (nm[1] % nm[0] or (nm[1] // nm[0]).bit_count() != 1):
                raise UserError(f"method.pattern={self.pattern} cannot be reached by halving; give M = 2 N, 4 N, 8 N, ... such as 1:8")

        def adjust(self, traits: Traits) -> Traits:
            """Without a dense phase a binary mask is on from the start."""
            return replace(traits, exact_at_init=self.dense > 0 or (self.mode.startswith("mask") and self.hard < 1))

    traits = Traits(sparse=True, moe=False)

    def layer(self, base: nn.Module, name: str, rows: Rows, ctx: Context) -> NmLinear:
        """The map in place, under its mask."""
        return NmLinear(base, self.level, rows, self.config.scaled_gradient)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Wrap every linear map of the blocks, if all stages fit."""
        widest = max(m for _, m in self.stages())
        for name, module in prunable(model).items():
            if (width := map_shape(module)[1]) % widest:
                c, kind = self.config, unwrap(model).config.model_type
                reason = f"{name} of {kind} has {width}"
                raise UserError(f"method.pattern={c.pattern} in mode {c.mode} needs input widths divisible by {widest}; {reason}")
        return super().prepare(model, ctx)

    def stages(self) -> list[tuple[int, int]]:
        """The patterns of the decaying phase, in turn."""
        n, m = nm_pattern("method.pattern", self.config.pattern)
        if self.config.mode == "structure_stepwise":
            return stepwise(n, m)
        return geometric(n, m) if self.config.mode == "structure_geometric" else [(n, m)]

    def first(self) -> Flow:
        """As at update 0 of any number of them."""
        return self.at(0, 1000)

    def at(self, step: int, steps: int) -> Flow:
        """What the forward pass after `step` of `steps` updates sees."""
        start, end = self.span(steps)
        if step >= end:
            return Flow(*self.stages()[-1], 0.0)
        if step < start:
            return DENSE
        stages = self.stages()
        return Flow(*stages[stage(step - start, end - start, len(stages))], self.beta(step - start, end - start))

    def span(self, steps: int) -> tuple[int, int]:
        """Updates before the decaying phase, and before the hard one; a dense phase has at least one."""
        c = self.config
        end = steps - round(c.hard * steps)
        return min(max(round(c.dense * steps), int(c.dense > 0)), end), end

    def beta(self, t: int, length: int) -> float:
        """beta(t) of a decaying phase of `length` updates; 0 where the mask is binary."""
        if self.config.mode == "mask_linear":
            return linear_beta(self.config.decay or 1 / length, t)
        if self.config.mode == "mask_exponential":
            return exponential_beta(self.config.decay or -math.log(LEFT) / length, t)
        return 0.0

    def eligible(self, step: int, ctx: Context) -> bool:
        """Only in the hard phase."""
        return step >= self.span(ctx.total_steps)[1]

    def groups(self, model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
        """As full fine-tuning: no parameter is added."""
        return Method.groups(self, model, settings)

    def on_gradients(self, model: nn.Module, step: int, ctx: Context) -> None:
        """SR-STE's penalty, once a step and before clipping, so that it passes through Adam."""
        if self.config.mode == "sr_ste" and self.level.value != DENSE:
            for layer in scored(model).values():
                layer.penalise(self.config.penalty)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the flow back."""
        n, m, beta = state["level"].tolist()
        self.level.value = Flow(int(n), int(m), beta)


def oriented(stock: nn.Module) -> Tensor:
    """The weight itself as (out, in)."""
    return stock.weight.mT if weight_is_transposed(stock) else stock.weight
