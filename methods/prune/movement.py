"""Movement pruning (Sanh et al. 2020, arXiv 2005.07683): y = x (M * W)^T + b, M from scores S that train with dL/dS := dL/dM = G * W.

G = dL/d(M * W). Under SGD S = S_0 - lr_S sum_t G W: weights that move away from zero stay. Hard (topK): M = 0 for the
int(s n k) smallest S of each matrix, s(t) cubic. Soft: M = 1 where sigmoid(S) > tau, tau(t) cubic from 0, and for at least
int(0.005 n k) + 1 entries a matrix; the loss gets + lambda(t) mean over matrices of mean sigmoid(S), lambda(t) = lambda tau(t) / tau,
and the sparsity follows from lambda. S starts at `score_init` and trains at `score_lr` without weight decay; all other parameters but
the embeddings train too, at the recipe's rate.

The ramp lies between `initial_warmup` and `final_warmup` times the w updates over which the learning rate warms up in the authors' code;
w = `warmup` times all updates, and the recipes here warm up as long. Their distillation from a fine-tuned teacher is left out, so claims
with it do not apply. Their count of kept entries is int((1 - s) n k), which differs from ours by at most one entry a matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from methods.base import Batch, Context
from methods.maths.masks import topk_mask
from methods.maths.rows import Rows
from methods.sparse.scored import FullLinear, ScoredLinear, ScoredMethod, scored
from methods.spec import Diverged, Traits, choice, number

FLOOR = 0.005
"""Share of a matrix that the soft threshold never prunes."""


class SoftLinear(FullLinear):
    """`level` is tau, a threshold of sigmoid(S)."""

    def kept(self, scores: Tensor) -> Tensor:
        """sigmoid(S) > tau, and the int(0.005 n k) + 1 largest in any case."""
        flat = scores.flatten(-2)
        if flat.isnan().any():
            raise Diverged("a score of a weight became NaN")
        floor = topk_mask(flat, int(FLOOR * flat.shape[-1]) + 1)
        return (floor | (flat.sigmoid() > self.level.value)).view(scores.shape)


class Movement(ScoredMethod):
    """Weights and a score for each of them train together while more and more of the lowest scores mask their weights."""

    @dataclass
    class Config:
        """`variant`: hard or soft. Hard: `sparsity` s_f, `initial_sparsity` s_0. Soft: `threshold` tau, `penalty` lambda.

        `warmup`: w as a share of all updates; `initial_warmup`, `final_warmup`: multiples of w. `score_init`: S at first; `score_lr`: its
        learning rate.
        """

        variant: str
        sparsity: float
        initial_sparsity: float
        threshold: float
        penalty: float
        warmup: float
        initial_warmup: float
        final_warmup: float
        score_init: float
        score_lr: float

        def __post_init__(self) -> None:
            choice("method.variant", self.variant, ("hard", "soft"))
            number("method.sparsity", self.sparsity, 0, 1, open_high=True)
            number("method.initial_sparsity", self.initial_sparsity, 0, self.sparsity)
            number("method.threshold", self.threshold, 0, 1, open_low=True, open_high=True)
            number("method.penalty", self.penalty, 0)
            number("method.warmup", self.warmup, 0, 1)
            for key in ("initial_warmup", "final_warmup"):
                number(f"method.{key}", getattr(self, key), 0)
            number("method.score_init", self.score_init)
            number("method.score_lr", self.score_lr, 0, open_low=True)

        def adjust(self, traits: Traits) -> Traits:
            """What starts sparse is not the loaded model."""
            return replace(traits, exact_at_init=self.variant == "soft" or self.initial_sparsity == 0)

    traits = Traits(sparse=True, moe=False)

    def layer(self, base: nn.Module, name: str, rows: Rows, ctx: Context) -> ScoredLinear:
        """W and S train."""
        kind = FullLinear if self.config.variant == "hard" else SoftLinear
        return kind(base, self.level, rows, self.config.score_init)

    def span(self, steps: int) -> tuple[float, float]:
        """t_i and t_f are multiples of the updates of warm-up."""
        w = int(self.config.warmup * steps + 0.5)
        return self.config.initial_warmup * w, self.config.final_warmup * w

    def first(self) -> float:
        """s_0, or the threshold 0."""
        return self.config.initial_sparsity if self.config.variant == "hard" else 0.0

    def last(self) -> float:
        """s_f, or tau."""
        return self.config.sparsity if self.config.variant == "hard" else self.config.threshold

    def loss(self, model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
        """The task's loss; with the soft threshold also the L1 norm of sigmoid(S), which is all positive."""
        loss = super().loss(model, batch, ctx)
        if self.config.variant == "hard":
            return loss
        weight = self.config.penalty * self.level.value / self.config.threshold
        means = torch.stack(list(self._openness(model)))
        return loss + weight * means.sum() / sum(layer.rows.parts for layer in scored(model).values())

    def _openness(self, model: nn.Module) -> Iterator[Tensor]:
        """Mean sigmoid(S) of every map, as often as it holds matrices."""
        return (layer.rows.parts * layer.mask_scores.sigmoid().mean() for layer in scored(model).values())
