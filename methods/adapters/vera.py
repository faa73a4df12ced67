"""VeRA (Kopiczko et al. 2024, arXiv 2310.11454, Eq. 2): dW = diag(b) B diag(d) A, one random pair A (r, in), B (out, r) for all targets.

A and B are Kaiming uniform, frozen, as large as the largest target and cut to each; b starts at 0, d at `d_initial`. Trained: b and d.
"""

from dataclasses import dataclass

import torch
from peft import PeftModel, VeraConfig
from torch import Tensor, nn

from methods.adapters.peft_base import ADAPTER, PeftMethod, adapted, target_modules
from methods.base import Context
from methods.spec import Traits, linear_roles, number


class Vera(PeftMethod):
    """PEFT's VeRA; r + out trained parameters a target, while A and B are buffers that follow from the seed."""

    @dataclass
    class Config:
        """`targets`: roles."""

        r: int
        d_initial: float
        dropout: float
        targets: list[str]

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            number("method.d_initial", self.d_initial)
            number("method.dropout", self.dropout, 0, 1, open_high=True)
            linear_roles("method.targets", self.targets)

    traits = Traits(randomness=("init",), exports_lora=True)

    def prepare(self, model: nn.Module, ctx: Context) -> PeftModel:
        """Wrap the model around the projections of this seed (over half-precision weights PEFT rounds them to that precision)."""
        self.key = ctx.generator("vera").initial_seed()
        return super().prepare(model, ctx)

    def peft_config(self, model: nn.Module) -> VeraConfig:
        """VeRA on the targets."""
        c = self.config
        return VeraConfig(
            r=c.r, d_initial=c.d_initial, vera_dropout=c.dropout, projection_prng_key=self.key, **target_modules(model, c.targets)
        )

    @torch.no_grad()
    def lora(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """(diag(b) B, diag(d) A) of every target."""
        return {name: _factors(layer) for name, layer in adapted(model).items()}


def _factors(layer: nn.Module) -> tuple[Tensor, Tensor]:
    b, d = layer.vera_lambda_b[ADAPTER].float(), layer.vera_lambda_d[ADAPTER].float()
    up, down = layer.vera_B[ADAPTER][: layer.out_features].float(), layer.vera_A[ADAPTER][:, : layer.in_features].float()
    return b[:, None] * up, d[:, None] * down
