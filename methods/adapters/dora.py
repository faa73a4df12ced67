"""DoRA (Liu et al. 2024, arXiv 2402.09353, Eq. 5): W' = g (W + s B A) / |W + s B A|, one g and one norm per output, s = alpha / r.

g starts at |W|, so W' = W; the norm is a constant in the backward pass (Section 4.3). Trained: A, B and g.
"""

from dataclasses import dataclass

from peft import LoraConfig
from torch import nn

from methods.adapters.peft_base import PeftMethod, target_modules
from methods.spec import Traits, linear_roles, number


class Dora(PeftMethod):
    """PEFT's DoRA; r (in + out) + out parameters a target."""

    @dataclass
    class Config:
        """`targets`: roles."""

        r: int
        alpha: float
        dropout: float
        targets: list[str]

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            number("method.dropout", self.dropout, 0, 1, open_high=True)
            linear_roles("method.targets", self.targets)

    traits = Traits(randomness=("init",))

    def peft_config(self, model: nn.Module) -> LoraConfig:
        """LoRA with magnitudes on the targets."""
        c = self.config
        return LoraConfig(use_dora=True, r=c.r, lora_alpha=c.alpha, lora_dropout=c.dropout, **target_modules(model, c.targets))
