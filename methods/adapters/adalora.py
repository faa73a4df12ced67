"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512, Eq. 3-12): dW = s P diag(L) Q, s = alpha / init_r; triplets (P_i, L_i, Q_i) compete.

Sensitivity |w dw|, smoothed (beta1), times its smoothed deviation (beta2) scores every entry; a triplet scores s(L_i) + mean s(P_i) +
mean s(Q_i). Every `interval` updates the L_i below the b(t) best of all targets are set to 0; b(t) falls with the cube of the time left
from init_r to target_r a target, and stays for the last `final` of training. Loss + w mean(|P^T P - I|_F, |Q Q^T - I|_F): norms and their
mean, as in the official code and PEFT, where Eq. 4 squares and adds them. L starts at 0, P and Q at N(0, 0.02^2).
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from torch import Tensor, nn

from methods.adapters.peft_base import ADAPTER, PeftMethod, adapted, target_modules
from methods.base import Batch, Context
from methods.spec import Traits, UserError, linear_roles, number

AVERAGES = ("exp_avg_ipt", "exp_avg_unc")
"""Smoothed sensitivity and deviation in PEFT's allocator."""
KEPT = "kept"


class AdaLora(PeftMethod):
    """PEFT's AdaLoRA, its allocator driven after every update; init_r (in + out + 1) trained parameters a target, pruned ones included."""

    @dataclass
    class Config:
        """`targets`: roles. `warmup`, `final`: shares of all updates before the budget falls and after it has fallen.

        `interval`: updates between two allocations. `orthogonality`: w.
        """

        init_r: int
        target_r: int
        alpha: float
        dropout: float
        targets: list[str]
        warmup: float
        final: float
        interval: int
        beta1: float
        beta2: float
        orthogonality: float

        def __post_init__(self) -> None:
            number("method.target_r", self.target_r, 1)
            number("method.init_r", self.init_r, self.target_r, open_low=True)
            number("method.alpha", self.alpha, 0, open_low=True)
            number("method.dropout", self.dropout, 0, 1, open_high=True)
            linear_roles("method.targets", self.targets)
            number("method.warmup", self.warmup, 0, 1, open_high=True)
            number("method.final", self.final, 0, 1, open_high=True)
            if self.warmup + self.final >= 1:
                raise UserError(f"method.warmup={self.warmup} and method.final={self.final} leave no time to prune; give a sum below 1")
            number("method.interval", self.interval, 1)
            number("method.beta1", self.beta1, 0, 1, open_low=True, open_high=True)
            number("method.beta2", self.beta2, 0, 1, open_low=True, open_high=True)
            number("method.orthogonality", self.orthogonality, 0)

    traits = Traits(randomness=("init",), exports_lora=True)

    def prepare(self, model: nn.Module, ctx: Context) -> PeftModel:
        """Wrap the model for a schedule over all updates of the training phase to come."""
        self.steps = max(2, ctx.total_steps)  # the first allocation needs the scores of an earlier update
        wrapped = super().prepare(model, ctx)
        for layer in adapted(wrapped).values():
            layer.ranknum.requires_grad_(False)  # moving to a device made it a trainable parameter
        self.allocator, self.device = wrapped.base_model.rankallocator, next(wrapped.parameters()).device
        return wrapped

    def peft_config(self, model: nn.Module) -> AdaLoraConfig:
        """AdaLoRA on the targets."""
        c = self.config
        return AdaLoraConfig(
            init_r=c.init_r, target_r=c.target_r, lora_alpha=c.alpha, lora_dropout=c.dropout, total_step=self.steps,
            tinit=int(c.warmup * self.steps), tfinal=self._final, deltaT=c.interval, beta1=c.beta1, beta2=c.beta2,
            orth_reg_weight=c.orthogonality, **target_modules(model, c.targets),
        )  # fmt: skip

    def loss(self, model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
        """The model's loss and the penalty, which PEFT adds in its inner model alone."""
        return model.base_model(**batch).loss

    def on_update(self, model: nn.Module, step: int, ctx: Context) -> None:
        """Score, allocate and prune from the gradients of the update that was just made."""
        model.base_model.update_and_allocate(step)

    def eligible(self, step: int, ctx: Context) -> bool:
        """Only once the budget is reached."""
        return step >= self.steps - self._final

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """`ranks`: triplets left by target; `rank_total`: their sum."""
        ranks = {name: int(torch.count_nonzero(layer.lora_E[ADAPTER])) for name, layer in adapted(model).items()}
        return {"ranks": ranks, "rank_total": sum(ranks.values())}

    @torch.no_grad()
    def lora(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """(s P, diag(L) Q) of the triplets left; a target without any is left out."""
        found = {name: _factors(layer) for name, layer in adapted(model).items()}
        return {name: factors for name, factors in found.items() if len(factors[1])}

    def state_dict(self) -> dict[str, Tensor]:
        """The allocator's averages, and its last allocation, by parameter name."""
        averages = {f"{key}:{name}": tensor for key in AVERAGES for name, tensor in getattr(self.allocator, key).items()}
        pattern = self.allocator.peft_config.rank_pattern or {}
        return averages | {f"{KEPT}:{name}": torch.tensor(kept) for name, kept in pattern.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put both back into the allocator."""
        allocator, pattern = self.allocator, {}
        allocator.reset_ipt()
        for key, tensor in state.items():
            kind, name = key.split(":", 1)
            if kind == KEPT:
                pattern[name] = tensor.tolist()
            else:
                getattr(allocator, kind)[name] = tensor.to(self.device)
                allocator.ipt[name] = torch.zeros_like(tensor, device=self.device)  # its presence says that the averages began
        allocator.peft_config.rank_pattern = pattern or None

    @property
    def _final(self) -> int:
        return min(int(self.config.final * self.steps), self.steps - 2)


def _factors(layer: nn.Module) -> tuple[Tensor, Tensor]:
    values = layer.lora_E[ADAPTER].float()
    left = values.flatten() != 0
    scale = layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER] + 1e-5)  # PEFT's guard against a rank of 0
    return scale * layer.lora_B[ADAPTER].float()[:, left], (values * layer.lora_A[ADAPTER].float())[left]
