"""PiSSA (Meng et al. 2024, arXiv 2404.02948, Eq. 2-4): W = U S V^T, s B A = U_r S_r V_r^T at the start, W_res = W - s B A frozen.

y = (W_res + s B A) x, s = alpha / r. B starts at U_r (S_r / s)^1/2 and A at (S_r / s)^1/2 V_r^T, whichever s is; trained: A and B.
"""

from dataclasses import dataclass, replace

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from methods.adapters.peft_base import ADAPTER, PeftMethod, adapted, lora_factors, target_modules
from methods.base import Context
from methods.maths.principal import principal_factors
from methods.roles import role_names, weight_is_transposed
from methods.spec import Traits, UserError, linear_roles, number


class Pissa(PeftMethod):
    """PEFT's LoRA with principal factors, which a resume reads back; the final change has rank 2 r: s (B A - B_0 A_0)."""

    @dataclass
    class Config:
        """`targets`: roles. `iterations`: of the randomised decomposition (the paper's fast one); null = exact."""

        r: int
        alpha: float
        dropout: float
        targets: list[str]
        iterations: int | None

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            number("method.dropout", self.dropout, 0, 1, open_high=True)
            linear_roles("method.targets", self.targets)
            if self.iterations is not None:
                number("method.iterations", self.iterations, 0)

        def adjust(self, traits: Traits) -> Traits:
            """The randomised decomposition draws."""
            return traits if self.iterations is None else replace(traits, randomness=("init",))

    traits = Traits(exports_lora=True)

    def peft_config(self, model: nn.Module) -> LoraConfig:
        """LoRA on the targets."""
        c = self.config
        return LoraConfig(r=c.r, lora_alpha=c.alpha, lora_dropout=c.dropout, **target_modules(model, c.targets))

    def prepare(self, model: nn.Module, ctx: Context) -> PeftModel:
        """The principal part of every target goes from its frozen weight into the adapter."""
        self.start = ctx.once("pissa", lambda: self._principal(model))
        wrapped = super().prepare(model, ctx)
        for name, layer in adapted(wrapped).items():
            place(layer, self.start[f"{name}.B"], self.start[f"{name}.A"])
        return wrapped

    def lora(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """([s B, -s B_0], [A; A_0]): exact up to the rounding of W_res to the weight's dtype."""
        found = {}
        for name, (b, a) in lora_factors(model).items():
            b0, a0 = (self.start[f"{name}.{factor}"].to(b.device) for factor in "BA")
            found[name] = torch.cat([b, -self._scale * b0], 1), torch.cat([a, a0])
        return found

    @property
    def _scale(self) -> float:
        return self.config.alpha / self.config.r

    @torch.no_grad()
    def _principal(self, model: nn.Module) -> dict[str, Tensor]:
        """`<name>.B` (out, r) and `<name>.A` (r, in) of every target; their product times s is the principal part."""
        found = {}
        for name in role_names(model, self.config.targets):
            module = model.get_submodule(name)
            weight = module.weight.mT if weight_is_transposed(module) else module.weight
            if self.config.r > min(weight.shape):
                raise UserError(f"method.r={self.config.r} is more than the rank of {name}; give method.r of at most {min(weight.shape)}")
            b, a = principal_factors(weight, self.config.r, self.config.iterations)
            found |= {f"{name}.B": b / self._scale**0.5, f"{name}.A": a / self._scale**0.5}
        return found


@torch.no_grad()
def place(layer: nn.Module, b: Tensor, a: Tensor) -> None:
    """Start a LoRA layer at B = b, A = a and take s b a out of its frozen weight, rounding once."""
    layer.lora_B[ADAPTER].weight.copy_(b)
    layer.lora_A[ADAPTER].weight.copy_(a)
    weight = layer.get_base_layer().weight
    weight.copy_(weight.float() - layer.get_delta_weight(ADAPTER))
