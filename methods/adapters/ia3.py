"""(IA)^3 (Liu et al. 2022, arXiv 2205.05638, Section 3.3): k <- l_k * k, v <- l_v * v, y = W2 (l_ff * gelu(W1 x)); l starts at one.

l_k and l_v scale outputs, l_ff the input of the second feed-forward map. The vectors carry no weight decay, which pulls to 0, not to 1.
"""

from dataclasses import dataclass, replace
from typing import Any

from peft import IA3Config
from torch import nn

from methods.adapters.peft_base import PeftMethod, split_groups, target_modules
from methods.base import TrainSettings, parameter_groups
from methods.roles import role_names
from methods.spec import Traits, UserError, linear_roles


class Ia3(PeftMethod):
    """PEFT's (IA)^3 on the paper's positions; `down` of a mixture of experts lies in fused experts, out of PEFT's reach."""

    @dataclass
    class Config:
        """`targets`: roles that get a vector. `feedforward`: those of them whose input is scaled, not their output."""

        targets: list[str]
        feedforward: list[str]

        def __post_init__(self) -> None:
            linear_roles("method.targets", self.targets)
            for role in self.feedforward:
                if role not in self.targets:
                    raise UserError(f"method.feedforward holds {role}, which method.targets lacks; allowed: {', '.join(self.targets)}")

        def adjust(self, traits: Traits) -> Traits:
            """Attention-only targets work on mixtures of experts too."""
            return replace(traits, moe=not {"gate", "up", "down"} & set(self.targets))

    traits = Traits(moe=False)

    def peft_config(self, model: nn.Module) -> IA3Config:
        """(IA)^3 on the targets."""
        feedforward = role_names(model, self.config.feedforward) if self.config.feedforward else []
        return IA3Config(feedforward_modules=feedforward, **target_modules(model, self.config.targets))

    def groups(self, model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
        """The vectors in groups of their own, without weight decay."""
        return split_groups(model, parameter_groups(model, settings), "ia3_l", weight_decay=0.0)
