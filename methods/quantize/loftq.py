"""LoftQ (Li et al. 2024, arXiv 2310.08659, Algorithm 1): A_0 = B_0 = 0; for t = 1 .. T: Q_t = quant(W - B A), s B A = SVD_r(W - Q_t).

y = (Q_T + s B A) x, s = alpha / r, Q frozen; B starts at U_r (S_r / s)^1/2, A at (S_r / s)^1/2 V_r^T. quant = NormalFloat in blocks, so
T = 1 already starts from the best rank-r correction of the quantisation error. An implementation of its own on PEFT's LoRA: PEFT's needs
an accelerator and knows 4 and 8 bits only. Quantisation is simulated: Q is kept as dense values, and the final model is dense.
"""

from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from methods.adapters.peft_base import ADAPTER, PeftMethod, adapted, target_modules
from methods.base import Context
from methods.maths.normal_float import round_to_normal_float
from methods.maths.principal import principal_factors
from methods.roles import role_names, weight_is_transposed
from methods.spec import Traits, UserError, linear_roles, number


class LoftQ(PeftMethod):
    """PEFT's LoRA over a quantised backbone; the backbone's change is not low-rank, so there is no LoRA of the loaded weight to export."""

    @dataclass
    class Config:
        """`targets`: roles that are quantised and adapted. `iterations`: T. `block`: weights that share a scale."""

        r: int
        alpha: float
        dropout: float
        targets: list[str]
        bits: int
        iterations: int
        block: int

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            number("method.dropout", self.dropout, 0, 1, open_high=True)
            linear_roles("method.targets", self.targets)
            number("method.bits", self.bits, 2, 8)
            number("method.iterations", self.iterations, 1)
            number("method.block", self.block, 2)

    traits = Traits(exact_at_init=False)

    def prepare(self, model: nn.Module, ctx: Context) -> PeftModel:
        """Quantise the targets and start the adapters at the correction; a resume reads the factors and quantises again."""
        start = ctx.once("loftq", lambda: self._start(model))
        wrapped = super().prepare(model, ctx)
        for name, layer in adapted(wrapped).items():
            self._place(layer, *(start[f"{name}.{factor}"] for factor in ("B", "A", "earlier_B", "earlier_A")))
        return wrapped

    def peft_config(self, model: nn.Module) -> LoraConfig:
        """LoRA on the targets."""
        c = self.config
        return LoraConfig(r=c.r, lora_alpha=c.alpha, lora_dropout=c.dropout, **target_modules(model, c.targets))

    @torch.no_grad()
    def _start(self, model: nn.Module) -> dict[str, Tensor]:
        """By target name the last two pairs of factors: `B`, `A`, and `earlier_B`, `earlier_A`, from whose remainder Q is quantised."""
        found = {}
        for name in role_names(model, self.config.targets):
            weight = _oriented(model.get_submodule(name))
            if self.config.r > min(weight.shape):
                raise UserError(f"method.r={self.config.r} is more than the rank of {name}; give method.r of at most {min(weight.shape)}")
            b, a = weight.new_zeros(weight.shape[0], self.config.r), weight.new_zeros(self.config.r, weight.shape[1])
            for _ in range(self.config.iterations):
                earlier = b, a
                b, a = principal_factors(weight - self._quantised(weight, b, a), self.config.r)
            found |= {f"{name}.B": b, f"{name}.A": a, f"{name}.earlier_B": earlier[0], f"{name}.earlier_A": earlier[1]}
        return found

    def _quantised(self, weight: Tensor, b: Tensor, a: Tensor) -> Tensor:
        """quant(W - B A)."""
        return round_to_normal_float(weight - b @ a, self.config.bits, self.config.block)

    @torch.no_grad()
    def _place(self, layer: nn.Module, b: Tensor, a: Tensor, earlier_b: Tensor, earlier_a: Tensor) -> None:
        base, root = layer.get_base_layer(), (self.config.alpha / self.config.r) ** 0.5
        weight = _oriented(base)
        quantised = self._quantised(weight, earlier_b.to(weight.device), earlier_a.to(weight.device))
        base.weight.copy_(quantised.mT if weight_is_transposed(base) else quantised)
        layer.lora_B[ADAPTER].weight.copy_(b / root)
        layer.lora_A[ADAPTER].weight.copy_(a / root)


def _oriented(module: nn.Module) -> Tensor:
    """The weight as (out, in), float32."""
    return (module.weight.mT if weight_is_transposed(module) else module.weight).detach().float()
