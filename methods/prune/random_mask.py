"""Random pruning, the control of every mask: W <- M * W with M from scores S_ij ~ U(0, 1) instead of |W_ij|."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from methods.base import Context
from methods.prune.masked import MaskedMethod
from methods.spec import Traits, mask_shape


class RandomMask(MaskedMethod):
    """A uniformly random mask of the same exact counts, with optional training under it."""

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

    traits = Traits(exact_at_init=False, sparse=True, randomness=("mask",))

    def scorer(self, ctx: Context) -> Callable[[Tensor], Tensor]:
        """S ~ U(0, 1), drawn on the CPU so that every device gets the same mask."""
        generator = ctx.generator("mask")
        return lambda weight: torch.rand(weight.shape, generator=generator).to(weight.device)
