"""PERP (Zimmer et al. 2023, arXiv 2312.15230): prune once, then retrain a small part of the parameters under the mask M, stored as such.

`lora` on every pruned map, s = alpha / r, A (r, in), B (out, r): mask_lora y = x (W + s M * (B A))^T + b, the paper's choice;
scale_lora y = x (W * (B A))^T + b with all entries 1 / sqrt(r) at first; lora y = x (W + s B A)^T + b, whose fold fills the zeros;
lora_prune trains as lora, and after training B A <- M * (B A). Elsewhere A is Kaiming and B zero. There is no dropout: with a mask on
B A it has no meaning on x. `subset` trains biases and normalisations (weight and bias) with them.

`mode: reconstruct` trains nothing on the task. Map by map min |X W_dense^T - X W'^T|_F^2 over A and B, X from the pruned prefix, from
X^T X alone. The paper states this objective for maps; its code minimises it for whole blocks by mini-batches, also over biases and
norms, and shares the schedule (linear, a tenth of warmup). All maps are pruned before the first is reconstructed.

A language model's head is left as it is, where the paper gives it LoRA: it is tied to the embeddings. The mask is that of pruning, not
W != 0 as in the paper's code, except with `criterion: none`, which keeps the zeros that are there. With equal entries all r components of
scale_lora get equal gradients, so its B A stays of rank 1; that is the paper's initialisation.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.own_base import fold, insert, wrapped
from methods.adapters.wrapped import LowRankLinear, WrappedLinear, map_shape, weight_and_bias
from methods.base import Context, Method, freeze_backbone
from methods.blockwise import walk
from methods.maths import draws
from methods.maths.hadamard_lora import HadamardLinear, effective, reconstruct
from methods.maths.statistics import Gram
from methods.prune.criteria import prune
from methods.prune.oneshot import put
from methods.roles import norms, prunable, prunable_parameters, unwrap, weight_is_transposed
from methods.spec import Diverged, Traits, UserError, choice, mask_shape, number


@dataclass
class Pair:
    """B (out, r), A (r, in) and s."""

    b: Tensor
    a: Tensor
    scale: float


class HadamardLora(WrappedLinear):
    """W + s M * (B A) under a mask (out, in); W * (B A) without one."""

    def __init__(self, base: nn.Module, pair: Pair, mask: Tensor | None) -> None:
        super().__init__(base)
        self.lora_B, self.lora_A, self.scale = nn.Parameter(pair.b), nn.Parameter(pair.a), pair.scale
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return hadamard(x, self.stock(), self.mask, self.scale, self.lora_B, self.lora_A)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """(W', b)."""
        weight, bias = weight_and_bias(self.base_layer)
        return effective(weight, self.mask, self.scale, self.lora_B, self.lora_A), bias


class DenseLora(LowRankLinear):
    """W + s B A."""

    def __init__(self, base: nn.Module, pair: Pair) -> None:
        super().__init__(base)
        self.lora_B, self.lora_A, self.scale = nn.Parameter(pair.b), nn.Parameter(pair.a), pair.scale

    def chain(self) -> tuple[Tensor, Tensor]:
        """A, s B."""
        return self.lora_A, self.lora_B * self.scale


class PrunedLora(DenseLora):
    """Trains as W + s B A, folds to W + s M * (B A); once `settled` it is that in eval mode too."""

    def __init__(self, base: nn.Module, pair: Pair, mask: Tensor) -> None:
        super().__init__(base, pair)
        self.settled = False
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.settled and not self.training:
            return hadamard(x, self.stock(), self.mask, self.scale, self.lora_B, self.lora_A)
        return super().forward(x)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """(W + s M * (B A), b)."""
        weight, bias = weight_and_bias(self.base_layer)
        return effective(weight, self.mask, self.scale, self.lora_B, self.lora_A), bias


class Perp(Method):
    """Prune-retrain of few parameters: r (in + out) a map, and the chosen vectors."""

    @dataclass
    class Config:
        """`criterion`: magnitude, random, wanda, sparsegpt, or none; `sparsity` and `pattern` (unstructured, N:M) are its.

        `subset`: of biases and norms. `lora`: none, lora, lora_prune, scale_lora or mask_lora; `r`, `alpha`. `mode`: retrain, or
        reconstruct, to which `subset` means nothing and `steps` and `rate` (Adam's learning rate) belong.
        """

        criterion: str
        sparsity: float
        pattern: str
        subset: list[str]
        lora: str
        r: int
        alpha: float
        mode: str
        steps: int
        rate: float

        def __post_init__(self) -> None:
            choice("method.criterion", self.criterion, ("magnitude", "random", "wanda", "sparsegpt", "none"))
            mask_shape(self.sparsity, "layer", self.pattern)
            for part in self.subset:
                choice("method.subset", part, ("biases", "norms"))
            choice("method.lora", self.lora, ("none", "lora", "lora_prune", "scale_lora", "mask_lora"))
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            choice("method.mode", self.mode, ("retrain", "reconstruct"))
            number("method.steps", self.steps, 1)
            number("method.rate", self.rate, 0, open_low=True)
            self._refuse_what_cannot_be()

        def _refuse_what_cannot_be(self) -> None:
            if self.mode == "retrain" and self.lora == "none" and not self.subset:
                raise UserError("method.subset=[] with method.lora=none retrains nothing; give method.subset=[norms] or a method.lora")
            if self.mode == "reconstruct" and self.lora not in ("mask_lora", "scale_lora"):
                raise UserError(f"method.lora={self.lora} cannot reconstruct under a mask; give method.lora=mask_lora or scale_lora")
            if self.mode == "reconstruct" and self.criterion == "none":
                raise UserError("method.criterion=none has no dense weights to reconstruct; give another method.criterion")

        def adjust(self, traits: Traits) -> Traits:
            """The criterion says what is looked at and drawn, the form of LoRA whether the zeros stay."""
            retrains = self.mode == "retrain"
            drawn = (("mask",) if self.criterion == "random" else ()) + (("init",) if self.lora not in ("none", "scale_lora") else ())
            return replace(
                traits,
                trains=retrains,
                gradients=retrains,
                biases=retrains and self.lora == "none" and self.subset == ["biases"],
                exact_at_init=self.criterion == "none",
                calibration=not retrains or self.criterion in ("wanda", "sparsegpt"),
                sparse=self.criterion != "none" and self.lora != "lora",
                randomness=drawn,
            )

    traits = Traits(randomness=("init",), exact_at_init=False, sparse=True, moe=False)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Prune; then wrap the maps and open the subset, or reconstruct the maps."""
        c = self.config
        self.errors: dict[str, tuple[float, float]] = {}
        retrains = c.mode == "retrain"
        dense = {} if retrains else {name: weight_and_bias(m)[0].clone() for name, m in prunable(model).items()}
        masks = prune(model, ctx, c.criterion, c.sparsity, c.pattern)
        self.kept = {name: _flipped(module, masks[f"{name}.weight"]).contiguous() for name, module in prunable(model).items()}
        if not retrains:
            model.requires_grad_(False)
            self._reconstruct(model, dense, ctx)
            return model
        freeze_backbone(model)
        if c.lora != "none":
            insert(model, {name: self._wrap(module, name, ctx) for name, module in prunable(model).items()})
        self._open(model)
        return model

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Retrain; afterwards lora_prune takes from B A what the mask prunes."""
        if self.config.mode == "reconstruct":
            return model
        model = ctx.train(model)
        for layer in wrapped(model).values():
            if isinstance(layer, PrunedLora):
                layer.settled = True
        return model

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The stock model with every wrapper folded in float32; all its parameters require gradients again."""
        fold(model)
        return model.requires_grad_(True)

    @torch.no_grad()
    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """`sparsity`: zeros over all prunable weights, as they fold. `reconstruction_error`: of all maps, relative, before and after."""
        names = [name.removesuffix(".base_layer") for name in prunable(model)]
        zeros = sum(int((weight_and_bias(model.get_submodule(name))[0] == 0).sum()) for name in names)
        total = sum(weight.numel() for weight in prunable_parameters(model).values())
        found: dict[str, Any] = {"sparsity": zeros / total, "prunable": total}
        if self.errors:
            before, after = (sum(pair[i] for pair in self.errors.values()) / len(self.errors) for i in (0, 1))
            found["reconstruction_error"] = {"before": before, "after": after}
        return found

    def _wrap(self, base: nn.Module, name: str, ctx: Context) -> WrappedLinear:
        pair, mask = self._pair(base, name, ctx), self.kept[name]
        if self.config.lora == "lora":
            return DenseLora(base, pair)
        if self.config.lora == "lora_prune":
            return PrunedLora(base, pair, mask)
        return HadamardLora(base, pair, mask if self.config.lora == "mask_lora" else None)

    def _pair(self, base: nn.Module, name: str, ctx: Context) -> Pair:
        """The factors at first."""
        c, (out, into), device = self.config, map_shape(base), base.weight.device
        if c.lora == "scale_lora":
            entry = c.r**-0.5
            return Pair(torch.full((out, c.r), entry, device=device), torch.full((c.r, into), entry, device=device), 1.0)
        a = draws.kaiming((c.r, into), ctx.generator(f"perp {name}"), device)
        return Pair(torch.zeros(out, c.r, device=device), a, c.alpha / c.r)

    def _open(self, model: nn.Module) -> None:
        """Let the subset train; `UserError` where the model has none of it and nothing else trains."""
        names = {name for name, _ in model.named_parameters() if name.endswith(".bias")} if "biases" in self.config.subset else set()
        if "norms" in self.config.subset:
            names |= {f"{norm}.{name}" for norm, module in norms(model).items() for name, _ in module.named_parameters()}
        if not names and self.config.lora == "none":
            kind = unwrap(model).config.model_type
            raise UserError(f"method.subset=[biases] is empty, since {kind} has no biases; give method.subset=[norms] or a method.lora")
        for name in names:
            model.get_parameter(name).requires_grad_(True)

    def _reconstruct(self, model: nn.Module, dense: dict[str, Tensor], ctx: Context) -> None:
        """Block by block, so that the inputs come from maps that are reconstructed already."""
        if any(weight.is_meta for weight in dense.values()):
            return

        def edit(name: str, module: nn.Module, gram: Gram) -> None:
            weight, before, after = self._refit(module, name, dense[name], gram.value, ctx)
            put(module, weight, self.kept[name])
            self.errors[name] = (before, after)

        with ctx.phase("reconstruct"):
            walk(model, ctx.calibration(), lambda module: Gram(map_shape(module)[1], module.weight.device), edit)

    def _refit(self, module: nn.Module, name: str, dense: Tensor, gram: Tensor, ctx: Context) -> tuple[Tensor, float, float]:
        c, pair = self.config, self._pair(module, name, ctx)
        mask = self.kept[name] if c.lora == "mask_lora" else None
        found = reconstruct(dense, weight_and_bias(module)[0], mask, pair.scale, pair.b, pair.a, gram, c.steps, c.rate)
        if not all(error < torch.inf for error in found[1:]):
            raise Diverged(f"the reconstruction error of {name} is not finite")
        return found


def hadamard(x: Tensor, stock: nn.Module, mask: Tensor | None, scale: float, b: Tensor, a: Tensor) -> Tensor:
    """`HadamardLinear` of a stock map."""
    return HadamardLinear.apply(x, _flipped(stock, stock.weight), stock.bias, mask, scale, b, a)


def _flipped(module: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix in the module's own orientation as (out, in)."""
    return matrix.mT if weight_is_transposed(module) else matrix
