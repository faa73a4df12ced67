"""PST (Li et al. 2022, arXiv 2205.11005): W_t = W + beta U V, S = |W_t| + alpha1 A B + alpha2 (R 1^T + 1 C^T), y = x (M * W_t)^T + b.

M = 0 for the int(s n k) smallest S of each matrix, s(t) cubic. W (n, k) and b are frozen; U (n, r1) and A (n, r2) start
at N(0, 1), V (r1, k), B (r2, k), R (n) and C (k) at 0, so that S = |W| at first: (n + k) (r1 + r2 + 1) parameters a matrix. The mask is
straight-through, dL/dS := dL/dM; the closed forms are in `methods/maths/pst.py`. No penalty on s, no distillation.

Options beside the authors' code: `train_head: false` leaves the task head as it was drawn, which is what their code does (its optimizer
picks parameters by the names of the factors); the default trains it, as every other method here does. `detach_magnitude: true`
drops the gradient through |W_t|, which their code has. `score_lr` gives A, B, R and C a learning rate of their own. `mode` takes parts
away: `magnitude` has S = |W| and `movement` a full matrix S from 0 that trains, both with W trained and without factors: the baselines
MaP and MvP under this schedule. There everything but the embeddings trains, and `detach_magnitude: true` is what movement
pruning's code does for MaP.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from methods.adapters.wrapped import weight_and_bias
from methods.base import Context, freeze_backbone
from methods.maths.draws import normal
from methods.maths.pst import Factors, PstLinear, Scales, masked_weight
from methods.maths.rows import Rows
from methods.roles import head_names, weight_is_transposed
from methods.sparse.scored import FullLinear, Level, ScoredLinear, ScoredMethod
from methods.spec import Traits, choice, number


class FactoredLinear(ScoredLinear):
    """W under the six factors; a fused map has them once a part, in a leading dimension."""

    def __init__(self, base: nn.Module, level: Level, rows: Rows, ranks: tuple[int, int], scales: Scales, draws: torch.Generator) -> None:
        """`ranks`: r1 and r2."""
        super().__init__(base, level, rows)
        self.scales = scales
        lead = (rows.parts,) if rows.parts > 1 else ()
        n, k, (r1, r2) = self.out_features // rows.parts, self.in_features, ranks
        self.weight_u = nn.Parameter(normal((*lead, n, r1), 1.0, draws, self.device))
        self.weight_v = nn.Parameter(torch.zeros(*lead, r1, k, device=self.device))
        self.mask_a = nn.Parameter(normal((*lead, n, r2), 1.0, draws, self.device))
        self.mask_b = nn.Parameter(torch.zeros(*lead, r2, k, device=self.device))
        self.mask_r = nn.Parameter(torch.zeros(*lead, n, device=self.device))
        self.mask_c = nn.Parameter(torch.zeros(*lead, k, device=self.device))

    @property
    def factors(self) -> Factors:
        """U, V, A, B, R, C."""
        return Factors(self.weight_u, self.weight_v, self.mask_a, self.mask_b, self.mask_r, self.mask_c)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        stock = self.stock()
        weight = stock.weight.mT if weight_is_transposed(stock) else stock.weight
        return PstLinear.apply(x, weight, stock.bias, self.level.value, self.scales, self.rows, *self.factors)

    def mask(self) -> Tensor:
        """M (out, in), bool."""
        return self.rows.join(self._masked()[1])

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """(M * W_t, b)."""
        return self.rows.join(self._masked()[0]), weight_and_bias(self.base_layer)[1]

    def _masked(self) -> tuple[Tensor, Tensor]:
        weight = self.rows.split(weight_and_bias(self.base_layer)[0])
        return masked_weight(weight, self.factors, self.scales, self.level.value)


class Pst(ScoredMethod):
    """Low-rank weights and low-rank plus structured scores under one cubic schedule."""

    @dataclass
    class Config:
        """`sparsity`: s_f, `initial_sparsity`: s_0. `initial_warmup`, `final_warmup`: shares of the updates before and after the ramp.

        `weight_rank`: r1, `mask_rank`: r2. `weight_beta`, `mask_alpha1`, `mask_alpha2`: beta, alpha1, alpha2. `mode`: pst, magnitude or
        movement. `score_lr`: learning rate of the scores' parameters; null = the recipe's.
        """

        mode: str
        sparsity: float
        initial_sparsity: float
        initial_warmup: float
        final_warmup: float
        weight_rank: int
        mask_rank: int
        weight_beta: float
        mask_alpha1: float
        mask_alpha2: float
        detach_magnitude: bool
        train_head: bool
        score_lr: float | None

        def __post_init__(self) -> None:
            choice("method.mode", self.mode, ("pst", "magnitude", "movement"))
            number("method.sparsity", self.sparsity, 0, 1, open_high=True)
            number("method.initial_sparsity", self.initial_sparsity, 0, self.sparsity)
            number("method.initial_warmup", self.initial_warmup, 0, 1)
            number("method.final_warmup", self.final_warmup, 0, 1 - self.initial_warmup)
            for key in ("weight_rank", "mask_rank"):
                number(f"method.{key}", getattr(self, key), 1)
            for key in ("weight_beta", "mask_alpha1", "mask_alpha2"):
                number(f"method.{key}", getattr(self, key))
            if self.score_lr is not None:
                number("method.score_lr", self.score_lr, 0, open_low=True)

        def adjust(self, traits: Traits) -> Traits:
            """Only factors are drawn; what starts sparse is not the loaded model."""
            drawn = traits.randomness if self.mode == "pst" else ()
            return replace(traits, randomness=drawn, exact_at_init=self.initial_sparsity == 0)

    traits = Traits(randomness=("init",), sparse=True, moe=False)

    def layer(self, base: nn.Module, name: str, rows: Rows, ctx: Context) -> ScoredLinear:
        """Factors, or the trained weight itself in the modes of the baselines."""
        c = self.config
        if c.mode == "pst":
            scales = Scales(c.weight_beta, c.mask_alpha1, c.mask_alpha2, c.detach_magnitude)
            return FactoredLinear(base, self.level, rows, (c.weight_rank, c.mask_rank), scales, ctx.generator(name))
        start = 0.0 if c.mode == "movement" else None
        return FullLinear(base, self.level, rows, start, attached=start is None and not c.detach_magnitude)

    def span(self, steps: int) -> tuple[float, float]:
        """t_i and t_f are shares of all updates."""
        return self.config.initial_warmup * steps, self.config.final_warmup * steps

    def freeze(self, model: nn.Module) -> None:
        """The backbone, except in the modes that train it; the head on demand."""
        if self.config.mode == "pst":
            freeze_backbone(model)
        else:
            super().freeze(model)
        if not self.config.train_head:
            for name in head_names(model):
                model.get_parameter(name).requires_grad_(False)
