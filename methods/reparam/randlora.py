"""RandLoRA (Albert et al. 2025, arXiv 2502.00987, Eq. 4): dW = s sum_j B_j diag(lambda_j) A diag(gamma_j), j = 1 .. N, s = alpha / r.

N = ceil(d / r), d = min(out, in). A (r, d) and B_j (D, r) are random, frozen, one set for the whole model, cut to each target and divided
by their standard deviation; gamma acts on the smaller side. Trained: lambda (r, N) from 0 and gamma (N, d) from 1 / max(N, d). N r >= d
makes dW full-rank, and a SMALLER r means more parameters: N (r + d) a target. PEFT draws the bases in bfloat16 where the device has it,
else in float16, and deals the columns of B to the B_j in an order of its own, which changes nothing in distribution.
"""

from dataclasses import dataclass

from peft import PeftModel, RandLoraConfig
from torch import nn

from methods.adapters.peft_base import PeftMethod, target_modules
from methods.base import Context
from methods.spec import Traits, choice, linear_roles, number


class RandLora(PeftMethod):
    """PEFT's RandLoRA; the bases are buffers that follow from the seed and from the shape of the largest target."""

    @dataclass
    class Config:
        """`targets`: roles. `bases`: dense, or entries in {-1, 0, 1} that are not 0 with probability 1/3 (sparse) or 1/sqrt(d)."""

        r: int
        alpha: float
        dropout: float
        targets: list[str]
        bases: str

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            number("method.dropout", self.dropout, 0, 1, open_high=True)
            linear_roles("method.targets", self.targets)
            choice("method.bases", self.bases, ("dense", "sparse", "very_sparse"))

    traits = Traits(randomness=("init",))

    def prepare(self, model: nn.Module, ctx: Context) -> PeftModel:
        """Wrap the model around the bases of this seed (over half-precision weights PEFT rounds them to that precision)."""
        self.key = ctx.generator("randlora").initial_seed()
        return super().prepare(model, ctx)

    def peft_config(self, model: nn.Module) -> RandLoraConfig:
        """RandLoRA on the targets."""
        c = self.config
        return RandLoraConfig(
            r=c.r, randlora_alpha=c.alpha, randlora_dropout=c.dropout, projection_prng_key=self.key,
            sparse=c.bases == "sparse", very_sparse=c.bases == "very_sparse", **target_modules(model, c.targets),
        )  # fmt: skip
