"""SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774): W' = argmin |X (W - W')^T|^2 over the kept weights, column by column.

H = X^T X + damp mean(diag) I, H^-1 = U^T U. Masks: the smallest w^2 / U_jj^2 of each block of B columns go, rows competing. The
paper's code compares with an inclusive threshold and so prunes one weight more per block; here counts are exact.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from methods.adapters.wrapped import map_shape
from methods.maths.obs import inverse_factor, sparsegpt
from methods.maths.statistics import Gram
from methods.prune.oneshot import OneShotMethod
from methods.spec import Traits, UserError, allocation_rule, mask_shape, nm_pattern, number


class Sparsegpt(OneShotMethod):
    """One-shot pruning with reconstruction, with optional training under the mask."""

    @dataclass
    class Config:
        """`sparsity`: fraction pruned. `pattern`: unstructured or N:M. `block`: B. `damp`: share of H's mean diagonal added to it.

        `allocation`: sparsity of the layers: uniform, global (all saliencies compete), or owl (`owl_times` = M, `owl_reach` = lambda).
        """

        sparsity: float
        pattern: str
        block: int
        damp: float
        allocation: str
        owl_times: float
        owl_reach: float
        retrain: bool

        def __post_init__(self) -> None:
            mask_shape(self.sparsity, "layer", self.pattern)
            number("method.block", self.block, 1)
            number("method.damp", self.damp, 0, open_low=True)
            allocation_rule(self.allocation, self.owl_times, self.owl_reach, self.sparsity, self.pattern)
            nm = nm_pattern("method.pattern", self.pattern)
            if nm and self.block % nm[1]:
                raise UserError(f"method.block={self.block} cuts through groups of {nm[1]}; give a multiple of {nm[1]}")

        def adjust(self, traits: Traits) -> Traits:
            """Without retraining nothing is trained."""
            return traits if self.retrain else replace(traits, trains=False, gradients=False)

    traits = Traits(exact_at_init=False, sparse=True, calibration=True, moe=False)

    def statistic(self, module: nn.Module) -> Gram:
        """X^T X."""
        return Gram(map_shape(module)[1], module.weight.device)

    def scale(self, statistic: Any) -> Tensor:
        """1 / U_jj, for a comparison between layers."""
        return 1 / inverse_factor(statistic.value, self.config.damp).diagonal()

    def edit(self, name: str, weight: Tensor, statistic: Any, sparsity: float) -> tuple[Tensor, Tensor]:
        """The reconstructed weight and its mask."""
        c = self.config
        return sparsegpt(weight, statistic.value, sparsity, nm_pattern("method.pattern", c.pattern), c.block, c.damp)
