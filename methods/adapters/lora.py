"""LoRA (Hu et al. 2022, arXiv 2106.09685): y = W x + s B A dropout(x), s = alpha / r; A (r, in) Kaiming, B (out, r) zero; W frozen.

rsLoRA (Kalajdzievski 2023, arXiv 2312.03732): s = alpha / sqrt(r). LoRA+ (Hayou et al. 2024, arXiv 2402.12354): eta_B = ratio eta_A.
"""

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from torch import Tensor, nn

from methods.adapters.peft_base import PeftMethod, lora_factors, split_groups, target_modules
from methods.base import TrainSettings, parameter_groups
from methods.spec import Traits, linear_roles, number


class Lora(PeftMethod):
    """PEFT's LoRA, with rsLoRA's scale and LoRA+'s learning rates as options; r (in + out) parameters a target."""

    @dataclass
    class Config:
        """`targets`: roles. `loraplus_ratio`: learning rate of B over that of A; null = 1."""

        r: int
        alpha: float
        dropout: float
        targets: list[str]
        rslora: bool
        loraplus_ratio: float | None

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            number("method.dropout", self.dropout, 0, 1, open_high=True)
            linear_roles("method.targets", self.targets)
            if self.loraplus_ratio is not None:
                number("method.loraplus_ratio", self.loraplus_ratio, 1)

    traits = Traits(randomness=("init",), exports_lora=True, distributed=("ddp", "fsdp"))

    def peft_config(self, model: nn.Module) -> LoraConfig:
        """LoRA on the targets."""
        c = self.config
        return LoraConfig(r=c.r, lora_alpha=c.alpha, lora_dropout=c.dropout, use_rslora=c.rslora, **target_modules(model, c.targets))

    def groups(self, model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
        """LoRA+: B in groups of its own at `loraplus_ratio` times the learning rate."""
        groups = parameter_groups(model, settings)
        ratio = self.config.loraplus_ratio
        return groups if ratio is None else split_groups(model, groups, "lora_B", lr=settings.lr * ratio)

    def lora(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """(s B, A) of every target."""
        return lora_factors(model)
