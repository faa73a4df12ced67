"""DyLoRA (Valipour et al. 2023, arXiv 2210.07558, Section 3): y = W x + (alpha / b) B[:, :b] A[:b] x with a rank b ~ p_B at every step.

A (R, in) Kaiming, B (out, R) zero, W frozen; one b for the whole model. Outside of steps b = R, and afterwards every b <= R is a model.
`frozen` (as in its scripts): only the b-th row of A and column of B get a gradient. As in its code the other entries then have a zero
gradient, not none, so momentum and weight decay still move them; `strict` puts them back after each update.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.adapters.own_base import AdapterMethod, keep, refold
from methods.adapters.wrapped import LowRankLinear
from methods.base import Context
from methods.maths import draws
from methods.spec import Traits, UserError, linear_roles, number


class DyLora(AdapterMethod):
    """r (in + out) parameters a target, as LoRA of rank r = R."""

    @dataclass
    class Config:
        """`r`: R. `weights`: p_B of the ranks 1 to R up to a factor; null = uniform. `targets`: roles."""

        r: int
        alpha: float
        dropout: float
        frozen: bool
        strict: bool
        weights: list[float] | None
        targets: list[str]

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            number("method.dropout", self.dropout, 0, 1, open_high=True)
            linear_roles("method.targets", self.targets)
            for weight in self.weights or []:
                number("method.weights", weight, 0)
            if self.weights is not None and (len(self.weights) != self.r or not sum(self.weights)):
                raise UserError(f"method.weights={self.weights} is not allowed; allowed: null, or {self.r} numbers (method.r), not all 0")

    traits = Traits(randomness=("init",), exports_lora=True)

    def wrap(self, base: nn.Module, name: str, ctx: Context) -> "DyLoraLinear":
        """Factors drawn under the target's name."""
        return DyLoraLinear(base, self.config, ctx.generator(f"dylora {name}"))

    def sample(self, step: int, ctx: Context) -> int:
        """The rank of a step: a function of (seed, step), so a resume and every process draw the same."""
        weights = torch.tensor(self.config.weights or [1.0] * self.config.r)
        return int(torch.multinomial(weights, 1, generator=ctx.generator(f"dylora rank {step}"))) + 1

    def on_step(self, model: nn.Module, step: int, ctx: Context) -> None:
        """All micro-batches of a step have its rank."""
        rank = self.sample(step, ctx)
        for layer in _layers(model):
            layer.begin(rank, self.config.strict)

    def on_update(self, model: nn.Module, step: int, ctx: Context) -> None:
        """Back to the full rank, which is what is evaluated, selected and folded."""
        for layer in _layers(model):
            layer.end()

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The stock model of rank R; the factors stay for `variants`."""
        self.kept = keep(model)
        return super().finalize(model, ctx)

    def variants(self, model: nn.Module, ctx: Context) -> Iterator[tuple[str, nn.Module]]:
        """`main` is rank R, then `rank1` to `rank<R - 1>`: always the same model, with other weights until the next is asked for."""
        yield "main", model
        try:
            for rank in range(1, self.config.r):
                self._fold(rank)
                yield f"rank{rank}", model
        finally:
            self._fold(self.config.r)

    def _fold(self, rank: int) -> None:
        for one in self.kept:
            one.layer.rank = rank
        refold(self.kept)


class DyLoraLinear(LowRankLinear):
    """y = W x + b + (alpha / rank) B[:, :rank] A[:rank] dropout(x)."""

    def __init__(self, base: nn.Module, config: DyLora.Config, generator: torch.Generator) -> None:
        super().__init__(base, config.dropout)
        self.r = self.rank = config.r
        self.alpha, self.frozen = config.alpha, config.frozen
        self.A = nn.Parameter(draws.kaiming((config.r, self.in_features), generator, self.device))
        self.B = nn.Parameter(torch.zeros(self.out_features, config.r, device=self.device))
        self.before: tuple[Tensor, Tensor] | None = None

    def chain(self) -> list[Tensor]:
        """A (rank, in) and alpha / rank B (out, rank)."""
        down, up = self.A[: self.rank], self.B[:, : self.rank]
        if self.frozen:
            down = torch.cat([down[:-1].detach(), down[-1:]])
            up = torch.cat([up[:, :-1].detach(), up[:, -1:]], dim=1)
        return [down, self.alpha / self.rank * up]

    def begin(self, rank: int, strict: bool) -> None:
        """Truncate to a rank; `strict` keeps the factors as they are now."""
        self.rank = rank
        self.before = (self.A.detach().clone(), self.B.detach().clone()) if strict else None

    @torch.no_grad()
    def end(self) -> None:
        """Back to the full rank; after a strict step rows of A and columns of B outside of it are what they were."""
        if self.before is not None:
            first = self.rank - 1 if self.frozen else 0
            for own, old in ((self.A, self.before[0]), (self.B.mT, self.before[1].mT)):
                own[:first] = old[:first]
                own[self.rank :] = old[self.rank :]
        self.rank, self.before = self.r, None


def _layers(model: nn.Module) -> Iterator[DyLoraLinear]:
    return (module for module in model.modules() if isinstance(module, DyLoraLinear))
