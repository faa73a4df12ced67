"""BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): b <- b - eta grad_b L for bias vectors b; all weights W stay.

Section 3 writes a layer's biases as b_q, b_k, b_v (attention), b_m1 (attention output), b_m2 (first feed-forward map, d -> 4d), b_m3
(second, 4d -> d) and those of the two LayerNorms. LayerNorm biases belong to the set, LayerNorm weights do not.
"""

from dataclasses import dataclass

from torch import nn

from methods.base import Context, Method, freeze_backbone
from methods.roles import fused, role_names, unwrap
from methods.spec import Traits, UserError, choice


class Bitfit(Method):
    """Trains bias vectors and the task head, nothing else."""

    @dataclass
    class Config:
        """`subset`: `all` biases, or `query_mlp` = b_q and b_m2 only, half of them (Section 4.3)."""

        subset: str

        def __post_init__(self) -> None:
            choice("method.subset", self.subset, ("all", "query_mlp"))

    traits = Traits(biases=True, distributed=("ddp", "fsdp"))

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Freeze all but the chosen biases and the head."""
        names = self.biases(model)
        freeze_backbone(model)
        for name in names:
            model.get_parameter(name).requires_grad_(True)
        return model

    def biases(self, model: nn.Module) -> list[str]:
        """Full names of the chosen bias parameters; `UserError` where the model has none of them."""
        present = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
        kind = unwrap(model).config.model_type
        if self.config.subset == "query_mlp":
            if fused(model):
                raise UserError(f"method.subset=query_mlp needs a query bias of its own, and {kind} fuses q, k and v; allowed: all")
            chosen = {f"{name}.bias" for name in role_names(model, ["q", "up"])}
            present = [name for name in present if name in chosen]
        if not present:
            raise UserError(f"bitfit needs bias parameters and {kind} has none; use a model with biases or another method")
        return present
