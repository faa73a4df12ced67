"""LoRA-SB (Ponkshe et al. 2024, arXiv 2411.19557): y = W x + B R A x, bases from the first step of full fine-tuning; s = 1.

G = sum of dL/dW over N training rows, D = -eta_0 sign(G) (Adam's first update), D ~ U_r S_r V_r^T; B = U_r, A = V_r^T, R = S_r.
Only R (r, r) trains; W stays, so the model starts one approximate step away from the pretrained one. As B^T B = A A^T = I, the
gradient of R moves B R A along the orthogonal projection of dL/dW: no other scale is needed (hence no alpha).

eta_0 = lr / (warmup * steps), the learning rate of the first warmup step, where the authors count steps by their estimation loader and
this file counts optimizer steps. Gradients are taken in training mode as theirs; a batch counts by its rows, so that the size of the
batches does not matter, where theirs weigh a smaller last batch more. Their SVD is randomised, this one exact. r is at most
the smaller side of a map.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from methods.adapters.own_base import AdapterMethod, insert
from methods.adapters.wrapped import map_shape
from methods.base import Context, freeze_backbone
from methods.maths.gradients import summed_gradients
from methods.maths.lowrank import truncated_svd
from methods.reparam.lora_xs import CoreLinear
from methods.roles import role_names, weight_is_transposed
from methods.spec import Traits, linear_roles, number


class LoraSb(AdapterMethod):
    """r^2 parameters a target; the gradient pass and its SVD run once per cell, in the phase `gradients`."""

    @dataclass
    class Config:
        """`samples`: N. `warmup`: share of the steps over which eta_0 grows to lr; give what `recipe.warmup` says."""

        r: int
        samples: int
        warmup: float
        targets: list[str]

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            number("method.samples", self.samples, 1)
            number("method.warmup", self.warmup, 0, 1)
            linear_roles("method.targets", self.targets)

        def adjust(self, traits: Traits) -> Traits:
            """Experts are fused parameters, out of reach."""
            return replace(traits, moe=not {"gate", "up", "down"} & set(self.targets))

    traits = Traits(exact_at_init=False, randomness=("init", "data"), exports_lora=True)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Measure the first step of full fine-tuning, then wrap every target around its bases; counting shapes needs no data."""
        targets = {name: model.get_submodule(name) for name in role_names(model, self.config.targets)}
        if all(base.weight.is_meta for base in targets.values()):
            factors = self.factors({name: torch.empty(map_shape(base), device="meta") for name, base in targets.items()})
        else:
            factors = ctx.once("first_step", lambda: self.factors(self.first_step(model, targets, ctx)))
        freeze_backbone(model)
        insert(model, {name: self._around(base, name, factors) for name, base in targets.items()})
        return model

    def first_step(self, model: nn.Module, targets: dict[str, nn.Module], ctx: Context) -> dict[str, Tensor]:
        """D (out, in) of every target."""
        weights = {name: base.weight for name, base in targets.items()}
        with ctx.phase("gradients"):
            rows = ctx.batches("train", self.config.samples)
            sums = summed_gradients(model, weights, rows, lambda m, batch: m(**batch).loss)
        eta = ctx.settings.lr / max(1.0, self.config.warmup * ctx.total_steps)
        return {name: -eta * torch.sign(g.mT if weight_is_transposed(targets[name]) else g) for name, g in sums.items()}

    def factors(self, steps: dict[str, Tensor]) -> dict[str, Tensor]:
        """B, R and A of every D by `<name>.B`, `<name>.R`, `<name>.A`."""
        found: dict[str, Tensor] = {}
        for name, step in steps.items():
            u, s, vt = truncated_svd(step, self.config.r)
            found |= {f"{name}.B": u, f"{name}.R": s.diag(), f"{name}.A": vt}
        return found

    def _around(self, base: nn.Module, name: str, factors: dict[str, Tensor]) -> CoreLinear:
        return CoreLinear(base, factors[f"{name}.B"], factors[f"{name}.R"], factors[f"{name}.A"], 1.0)
