"""MaskLLM (Fang et al. 2024, arXiv 2409.17481): learned N:M masks over frozen weights, y = x (W * M~)^T + b.

M~ = softmax((kappa(t) g + Gumbel noise) / tau(t)) C for each group of M inputs, C all patterns with N ones; g (groups, choices) starts at
N(0, init_std^2) plus alpha std(g) (C . M0 - mean) for the one-shot mask M0 of `prior`. tau and kappa are linear in t.
loss - lambda(t) sum |W * M~|_F^2, lambda falling to 0, keeps large weights, so that gradients do not vanish. Only g and the head train.
In eval mode, in selection and in the export the mask is the pattern of the largest g, without noise; W keeps its loaded values.

Noise comes from the device's generator, as dropout's does. The authors' learning rate is 5e-5 with a multiplier of 10 for g: 5e-4.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.wrapped import weight_and_bias
from methods.base import Batch, Context, Method, TrainSettings, freeze_backbone
from methods.maths.choices import candidates, gumbel, hard_mask, leaning, soft_mask
from methods.maths.draws import normal
from methods.maths.masks import nm_mask
from methods.maths.rows import Rows
from methods.maths.straight_through import exactly, product
from methods.prune.oneshot import OneShotMethod, check_groups
from methods.prune.sparsegpt import Sparsegpt
from methods.prune.wanda import Wanda
from methods.roles import prunable, weight_is_transposed
from methods.sparse.scored import Level, ScoredLinear, ScoredMethod, scored
from methods.spec import Traits, UserError, choice, nm_pattern, number


@dataclass
class Anneal:
    """tau and kappa at the start and at the end of training."""

    tau: tuple[float, float]
    kappa: tuple[float, float]


class ChoiceLinear(ScoredLinear):
    """W frozen under a choice of pattern for each group; `level.value` is the share of training that is over."""

    def __init__(self, base: nn.Module, level: Level, rows: Rows, gates: Tensor, patterns: Tensor, anneal: Anneal) -> None:
        """`gates`: g (out, groups, choices). `patterns`: C (choices, M)."""
        super().__init__(base, level, rows)
        self.mask_gates = nn.Parameter(gates)
        self.register_buffer("patterns", patterns, persistent=False)
        self.anneal = anneal
        self.energies: list[Tensor] | None = None
        """While `collecting`: |W * M~|_F^2 of every pass."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out): a soft sample in training, the hard mask else."""
        stock = self.stock()
        weight = stock.weight.mT if weight_is_transposed(stock) else stock.weight
        if not self.training:
            return product(x, weight * self.mask(), stock.bias)
        with exactly(x):
            masked = weight * self.sample()
            if self.energies is not None:
                self.energies.append(masked.float().square().sum())
        return product(x, masked, stock.bias)

    def sample(self) -> Tensor:
        """M~ (out, in), float32."""
        tau, kappa = (between(ends, self.level.value) for ends in (self.anneal.tau, self.anneal.kappa))
        return soft_mask(self.mask_gates, self.patterns, gumbel(self.mask_gates), tau, kappa)

    @torch.no_grad()
    def mask(self) -> Tensor:
        """M (out, in), bool."""
        return hard_mask(self.mask_gates, self.patterns)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """(W * M, b)."""
        weight, bias = weight_and_bias(self.base_layer)
        return weight * self.mask(), bias


class Maskllm(ScoredMethod):
    """Logits over the patterns of each group, 6 for 4 weights at 2:4."""

    @dataclass
    class Config:
        """`pattern`: N:M. `prior`: none, magnitude, wanda or sparsegpt; `prior_strength`: alpha. `regularisation`: lambda at the start.

        `tau_start`, `tau_end`, `kappa_start`, `kappa_end`: temperature and scale of the logits.
        """

        pattern: str
        init_std: float
        prior: str
        prior_strength: float
        tau_start: float
        tau_end: float
        kappa_start: float
        kappa_end: float
        regularisation: float

        def __post_init__(self) -> None:
            nm = nm_pattern("method.pattern", self.pattern)
            if nm is None:
                raise UserError("method.pattern=unstructured is not allowed; allowed: N:M with 0 < N < M such as 2:4")
            if nm[0] > 1 and nm[1] > 8:
                raise UserError(f"method.pattern={self.pattern} has too many choices a group; give M up to 8 or N = 1, such as 4:8")
            choice("method.prior", self.prior, ("none", "magnitude", "wanda", "sparsegpt"))
            number("method.prior_strength", self.prior_strength, 0)
            number("method.regularisation", self.regularisation, 0)
            for key in ("init_std", "tau_start", "tau_end", "kappa_start", "kappa_end"):
                number(f"method.{key}", getattr(self, key), 0, open_low=True)

        def adjust(self, traits: Traits) -> Traits:
            """Two of the priors look at calibration text."""
            return replace(traits, calibration=self.prior in ("wanda", "sparsegpt"))

    traits = Traits(exact_at_init=False, sparse=True, moe=False, randomness=("init", "forward"))

    def freeze(self, model: nn.Module) -> None:
        """The backbone."""
        freeze_backbone(model)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Wrap every linear map of the blocks, its logits leaning to the prior."""
        check_groups(model, self.config.pattern)
        self.priors = {} if next(model.parameters()).is_meta else self._priors(model, ctx)
        model = super().prepare(model, ctx)
        del self.priors
        return model

    def layer(self, base: nn.Module, name: str, rows: Rows, ctx: Context) -> ChoiceLinear:
        """Logits drawn under the map's name."""
        c, weight = self.config, weight_and_bias(base)[0]
        n, m = nm_pattern("method.pattern", c.pattern)
        patterns = candidates(n, m, weight.device)
        gates = normal((weight.shape[0], weight.shape[1] // m, len(patterns)), c.init_std, ctx.generator(name), weight.device)
        if name in self.priors:
            gates = leaning(gates, patterns, self.priors[name].to(weight.device), c.prior_strength)
        anneal = Anneal((c.tau_start, c.tau_end), (c.kappa_start, c.kappa_end))
        return ChoiceLinear(base, self.level, rows, gates, patterns, anneal)

    def first(self) -> float:
        """Nothing of the training is over."""
        return 0.0

    def at(self, step: int, steps: int) -> float:
        """The share of training that is over, t / T."""
        return step / steps

    def eligible(self, step: int, ctx: Context) -> bool:
        """Always: every evaluation has hard masks."""
        return True

    def groups(self, model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
        """The logits under the recipe's learning rate and weight decay."""
        return Method.groups(self, model, settings)

    def loss(self, model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
        """The model's loss minus lambda(t) sum |W * M~|_F^2 of the samples of this pass."""
        rate = between((self.config.regularisation, 0.0), self.level.value)
        if rate == 0 or not model.training:
            return super().loss(model, batch, ctx)
        with collecting(model) as energies:
            loss = super().loss(model, batch, ctx)
            return loss - rate * torch.stack(energies).sum()

    def _priors(self, model: nn.Module, ctx: Context) -> dict[str, Tensor]:
        """M0 (out, in), bool, by name of the map."""
        if self.config.prior == "none":
            return {}
        if self.config.prior == "magnitude":
            n, m = nm_pattern("method.pattern", self.config.pattern)
            return {name: nm_mask(weight_and_bias(module)[0].abs(), n, m) for name, module in prunable(model).items()}
        return ctx.once("prior", lambda: one_shot_masks(self._pruner(), model, ctx))

    def _pruner(self) -> OneShotMethod:
        """The method of the prior, at its own default values."""
        n, m = nm_pattern("method.pattern", self.config.pattern)
        common = {"sparsity": 1 - n / m, "pattern": self.config.pattern, "allocation": "uniform", "owl_times": 5.0, "owl_reach": 0.0}
        if self.config.prior == "wanda":
            return Wanda(Wanda.Config(**common, scope="row", variant=False, retrain=False))
        return Sparsegpt(Sparsegpt.Config(**common, block=m * max(1, 128 // m), damp=0.01, retrain=False))


@torch.no_grad()
def one_shot_masks(pruner: OneShotMethod, model: nn.Module, ctx: Context) -> dict[str, Tensor]:
    """The masks (out, in) of a one-shot pruner by name of the map; the model keeps its weights."""
    maps = prunable(model)
    loaded = {name: module.weight.detach().clone() for name, module in maps.items()}
    masks = {parameter.removesuffix(".weight"): mask for parameter, mask in pruner.masks(model, ctx)}
    for name, module in maps.items():
        module.weight.copy_(loaded[name])
    return {name: (mask.mT if weight_is_transposed(maps[name]) else mask).contiguous().cpu() for name, mask in masks.items()}


@contextmanager
def collecting(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the layers put the energy of every pass into the list."""
    layers, energies = list(scored(model).values()), []
    for layer in layers:
        layer.energies = energies
    try:
        yield energies
    finally:
        for layer in layers:
            layer.energies = None


def between(ends: tuple[float, float], share: float) -> float:
    """Linear from the first to the second."""
    return ends[0] + (ends[1] - ends[0]) * share
