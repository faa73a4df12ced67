"""DSnoT (Zhang et al. 2023, arXiv 2310.08915): e_r <- e_r + d_prune - d_grow, d_rj = W_rj mean_j; masks are refined, weights never change.

The first mask is row-wise, by |W| (magnitude), |W| |X_j|_2 (wanda) or W^2 / U_jj^2 (sparsegpt, without its update). As in the paper's code,
only the attention maps are refined by default (`targets`), mean_j is a sum per sequence, var_j the mean variance within sequences, a sign
change ends a row for N:M patterns and not for unstructured ones (`same_sign: auto`), and the order of pruning is Wanda's for
unstructured, the first mask's own for N:M. Unlike there, a row whose candidates are used up stops.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.wrapped import map_shape
from methods.base import Context
from methods.maths.dsnot import Rule, refine
from methods.maths.obs import inverse_factor
from methods.maths.statistics import Gram, Moments
from methods.prune.oneshot import OneShotMethod
from methods.roles import role_names
from methods.spec import Traits, allocation_rule, choice, linear_roles, mask_shape, nm_pattern, number


class Seen(Moments):
    """Moments of the inputs, and their Gram matrix where the first mask asks for it."""

    def __init__(self, width: int, device: torch.device, gram: bool) -> None:
        super().__init__(width, device)
        self.gram = Gram(width, device) if gram else None

    def add(self, x: Tensor) -> None:
        """One sequence."""
        super().add(x)
        if self.gram:
            self.gram.add(x)


class Dsnot(OneShotMethod):
    """Training-free refinement of a one-shot mask, with optional training under it."""

    @dataclass
    class Config:
        """`criterion`: of the first mask. `targets`: roles that are refined. `cycles`, `threshold`, `power` as `maths.dsnot.Rule`.

        `same_sign`: yes, no, or auto. `damp`: of sparsegpt's H. `allocation`: uniform, global or owl, as for Wanda.
        """

        sparsity: float
        pattern: str
        criterion: str
        targets: list[str]
        cycles: int
        threshold: float
        power: float
        same_sign: str
        damp: float
        allocation: str
        owl_times: float
        owl_reach: float
        retrain: bool

        def __post_init__(self) -> None:
            mask_shape(self.sparsity, "row", self.pattern)
            choice("method.criterion", self.criterion, ("magnitude", "wanda", "sparsegpt"))
            linear_roles("method.targets", self.targets)
            number("method.cycles", self.cycles, 0)
            number("method.threshold", self.threshold, 0)
            number("method.power", self.power, 0)
            choice("method.same_sign", self.same_sign, ("auto", "yes", "no"))
            number("method.damp", self.damp, 0, open_low=True)
            allocation_rule(self.allocation, self.owl_times, self.owl_reach, self.sparsity, self.pattern)

        def adjust(self, traits: Traits) -> Traits:
            """Without retraining nothing is trained."""
            return traits if self.retrain else replace(traits, trains=False, gradients=False)

    traits = Traits(exact_at_init=False, sparse=True, calibration=True, moe=False)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Prune and refine; `refined` counts the weights that were swapped."""
        self.refined = set(role_names(model, self.config.targets))
        self.swapped = 0
        return super().prepare(model, ctx)

    def statistic(self, module: nn.Module) -> Seen:
        """Mean, variance, squares and, for sparsegpt, X^T X."""
        return Seen(map_shape(module)[1], module.weight.device, self.config.criterion == "sparsegpt")

    def scale(self, statistic: Any) -> Tensor:
        """That of the first mask's criterion."""
        if self.config.criterion == "sparsegpt":
            return 1 / inverse_factor(statistic.gram.value, self.config.damp).diagonal()
        return statistic.value.sqrt() if self.config.criterion == "wanda" else torch.ones_like(statistic.value)

    def edit(self, name: str, weight: Tensor, statistic: Any, sparsity: float) -> tuple[Tensor, Tensor]:
        """The weight and its refined mask."""
        first = weight.abs() * self.scale(statistic)
        mask = self.ranked(first, sparsity)
        if name not in self.refined:
            return weight, mask
        nm = nm_pattern("method.pattern", self.config.pattern)
        order = first if nm else weight.abs() * statistic.value.sqrt()
        better = refine(mask, weight * statistic.mean, statistic.variance, order, self._rule(bool(nm)), nm[1] if nm else None)
        self.swapped += int((better & ~mask).sum())
        return weight, better

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Sparsity and the number of swapped weights."""
        return super().measure(model, ctx) | {"swapped": self.swapped}

    def _rule(self, patterned: bool) -> Rule:
        c = self.config
        return Rule(c.cycles, c.threshold, c.power, patterned if c.same_sign == "auto" else c.same_sign == "yes")
