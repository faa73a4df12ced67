"""Magnitude pruning (Han et al. 2015, arXiv 1506.02626): W <- M * W, M = 1 for the (1 - s) n largest |W_ij| of each comparison scope."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from methods.base import Context
from methods.prune.masked import MaskedMethod
from methods.spec import Traits, mask_shape


class Magnitude(MaskedMethod):
    """One-shot magnitude pruning, with optional training under the fixed mask."""

    @dataclass
    class Config:
        """`sparsity`: fraction pruned. `scope`: row, layer or global. `pattern`: unstructured, or N:M, where `scope` does not count."""

        sparsity: float
        scope: str
        pattern: str
        retrain: bool

        def __post_init__(self) -> None:
            mask_shape(self.sparsity, self.scope, self.pattern)

        def adjust(self, traits: Traits) -> Traits:
            """Without retraining nothing is trained: one shot, no data."""
            return traits if self.retrain else replace(traits, trains=False, gradients=False)

    traits = Traits(exact_at_init=False, sparse=True)

    def scorer(self, ctx: Context) -> Callable[[Tensor], Tensor]:
        """S = |W|."""
        return Tensor.abs
