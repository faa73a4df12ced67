"""Wanda (Sun et al. 2023, arXiv 2306.11695, Eq. 1): S_ij = |W_ij| |X_j|_2; the smallest of each row go, in one shot, nothing is updated.

X_j: input j over all calibration tokens, as the already pruned blocks before give it. `variant` (the paper's code, for LLaMA): a row loses
its smallest S while their sum stays within alpha of its total, alpha such that the layer has the sparsity. The code prunes int(s k) weights
of a row, here it is round(s k).
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from methods.adapters.wrapped import map_shape
from methods.maths.statistics import SquaredNorm
from methods.maths.wanda import cumulative_mask
from methods.prune.oneshot import OneShotMethod
from methods.spec import Traits, UserError, allocation_rule, choice, mask_shape


class Wanda(OneShotMethod):
    """One-shot pruning by weights and activations, with optional training under the mask."""

    @dataclass
    class Config:
        """`sparsity`: fraction pruned. `scope`: row (the paper) or layer. `pattern`: unstructured, or N:M, where `scope` does not count.

        `allocation`: sparsity of the layers: uniform, global (all S compete), or owl (`owl_times` = M, `owl_reach` = lambda).
        """

        sparsity: float
        scope: str
        pattern: str
        variant: bool
        allocation: str
        owl_times: float
        owl_reach: float
        retrain: bool

        def __post_init__(self) -> None:
            mask_shape(self.sparsity, self.scope, self.pattern)
            choice("method.scope", self.scope, ("row", "layer"))
            allocation_rule(self.allocation, self.owl_times, self.owl_reach, self.sparsity, self.pattern)
            if self.variant and (self.pattern != "unstructured" or self.scope != "row"):
                raise UserError("method.variant=true is for unstructured rows; give method.pattern=unstructured method.scope=row with it")

        def adjust(self, traits: Traits) -> Traits:
            """Without retraining nothing is trained."""
            return traits if self.retrain else replace(traits, trains=False, gradients=False)

    traits = Traits(exact_at_init=False, sparse=True, calibration=True, moe=False)

    def statistic(self, module: nn.Module) -> SquaredNorm:
        """|X_j|_2^2."""
        return SquaredNorm(map_shape(module)[1], module.weight.device)

    def scale(self, statistic: Any) -> Tensor:
        """|X_j|_2 (up to a factor)."""
        return statistic.value.sqrt()

    def ranked(self, score: Tensor, sparsity: float) -> Tensor:
        """Rows by count, or by their cumulative share."""
        return cumulative_mask(score, sparsity) if self.config.variant else super().ranked(score, sparsity)
