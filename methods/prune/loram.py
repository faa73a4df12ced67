"""LoRAM (Zhang et al. 2025, arXiv 2502.13533): train LoRA on a pruned model, use it on the full one.

W_P = pruned W_0, y = (W_P + s B_P A_P) x while training, s = alpha / r; then W = W_0 + s R(B_P A_P). R puts the rows of B_P and the
columns of A_P back where they were cut out, zeros elsewhere; where weights were only zeroed it is M * (B_P A_P). `align` trains W_P
itself before, for a share of the budget; W_0 stays as it was. The paper aligns on other text than it tunes on; here both are the
cell's. Heads of grouped queries go with their key-value head, and the language model's head has no LoRA (it may be tied).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.own_base import insert, wrapped
from methods.adapters.wrapped import LowRankLinear
from methods.base import Context, Method, freeze_backbone
from methods.maths import draws
from methods.maths.masks import layer_mask, nm_mask
from methods.prune.llm_pruner import LlmPruner
from methods.prune.sparsegpt import Sparsegpt
from methods.prune.structured import Group, groups, remove, restore
from methods.roles import head_names, prunable, role_names, weight_is_transposed
from methods.spec import Traits, UserError, choice, linear_roles, mask_shape, nm_pattern, number

STRUCTURED = ("rand", "stru")
Stored = tuple[Tensor, Tensor | None]
"""Weight and bias as a module keeps them, on the CPU."""


class Loram(Method):
    """r (in' + out') parameters a target while it trains, in' and out' the pruned shape; the finished model is the full one."""

    @dataclass
    class Config:
        """`pruning`: rand or stru (units by LLM-Pruner's `importance`), semi or unst (weights by `criterion`: sparsegpt, magnitude).

        `ratio`: of the units of a block or of the weights. `pattern`: of semi. `first`, `last`: shares of the blocks that stay whole.
        `align`: share of the budget.
        """

        pruning: str
        ratio: float
        pattern: str
        criterion: str
        importance: str
        first: float
        last: float
        align: float
        r: int
        alpha: float
        dropout: float
        targets: list[str]

        def __post_init__(self) -> None:
            choice("method.pruning", self.pruning, ("rand", "stru", "semi", "unst"))
            number("method.ratio", self.ratio, 0, 1, open_high=True)
            choice("method.criterion", self.criterion, ("sparsegpt", "magnitude"))
            choice("method.importance", self.importance, ("param_mix", "param_first", "param_second", "vectorize", "l1", "l2"))
            number("method.first", self.first, 0, 1)
            number("method.last", self.last, 0, 1)
            number("method.align", self.align, 0, 1, open_high=True)
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            number("method.dropout", self.dropout, 0, 1, open_high=True)
            linear_roles("method.targets", self.targets)
            if self.pruning == "semi":
                if nm_pattern("method.pattern", self.pattern) is None:
                    raise UserError("method.pruning=semi needs a pattern such as method.pattern=4:8")
                mask_shape(self.ratio, "layer", self.pattern)

        def adjust(self, traits: Traits) -> Traits:
            """What looks at calibration text, what draws, and what is a LoRA of the full model."""
            cut = self.pruning in ("rand", "stru")
            looks = self.criterion == "sparsegpt" if not cut else self.pruning == "stru" and self.importance not in ("l1", "l2")
            drawn = ("init", "mask") if self.pruning == "rand" else ("init",)
            return replace(traits, calibration=looks, exports_lora=cut, randomness=drawn)

    traits = Traits(families=("decoder",), moe=False, exact_at_init=False, recovers=True, exports_lora=True, randomness=("init", "mask"))

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Prune, align, and wrap the targets of the small model."""
        self.full = stored(model)
        self.rest: dict[str, Tensor] = {}
        """What is no map and no head, as it was loaded, where alignment changes it."""
        targets = role_names(model, self.config.targets)
        self.shapes = {name: matrix(model.get_submodule(name)).shape for name in targets}
        self._cut(model, ctx) if self.config.pruning in STRUCTURED else self._zero(model, ctx)
        if self.config.align:
            model = self._align(model, ctx)
        freeze_backbone(model)
        insert(model, {name: LoraLinear(model.get_submodule(name), self.config, ctx.generator(name)) for name in targets})
        return model

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """LoRA on the pruned model."""
        return ctx.train(model, share=1 - self.config.align)

    def lora(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """(B, A) of the full shapes: zero rows and columns where units were cut out; empty where weights were only zeroed."""
        structured = self.config.pruning in STRUCTURED
        return {name: self._recovered(name, layer) for name, layer in wrapped(model).items()} if structured else {}

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Weights of the blocks' maps before pruning, and those that are not zero after it."""
        after = sum(int((module.weight != 0).sum()) for module in prunable(model).values())
        return {"map_weights": sum(weight.numel() for weight, _ in self.full.values()), "pruned_map_weights": after}

    @torch.no_grad()
    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """W_0 + s R(B_P A_P); the small model with its LoRA is kept for `variants`."""
        layers = wrapped(model)
        deltas = {name: self._delta(name, layer) for name, layer in layers.items()}
        insert(model, {name: layer.unwrapped() for name, layer in layers.items()})
        self.small, self.aligned = stored(model), others(model) if self.rest else {}
        self._to_full(model)
        for name, delta in deltas.items():
            weight = matrix(model.get_submodule(name))
            weight.copy_(weight.float() + delta.to(weight.device))
        return model.requires_grad_(True)

    def variants(self, model: nn.Module, ctx: Context) -> Iterator[tuple[str, nn.Module]]:
        """`main` is the full model with LoRA recovered, `pruned` the small one with LoRA as it was trained."""
        yield "main", model
        recovered = stored(model)
        try:
            if self.config.pruning in STRUCTURED:
                remove(model, self.kept)
            put(model, self.small)
            put_others(model, self.aligned)
            yield "pruned", model
        finally:
            self._to_full(model)
            put(model, recovered)

    def _cut(self, model: nn.Module, ctx: Context) -> None:
        """Remove units; `rows` and `columns` are those that stay, by map."""
        c, whole = self.config, groups(model)
        pruner = LlmPruner(LlmPruner.Config(c.ratio, c.first, c.last, "random" if c.pruning == "rand" else c.importance, "sum", True))
        pruner.prepare(model, ctx)
        self.kept, self.units = pruner.kept, pruner.units
        self.rows, self.columns = staying(whole, self.kept)

    def _zero(self, model: nn.Module, ctx: Context) -> None:
        """Zero weights; `masks` by map, in the module's own orientation."""
        c = self.config
        pattern = c.pattern if c.pruning == "semi" else "unstructured"
        if c.criterion == "sparsegpt":
            pruner = Sparsegpt(Sparsegpt.Config(c.ratio, pattern, 128, 0.01, "uniform", 5.0, 0.0, False))
            self.masks = {name.removesuffix(".weight"): mask for name, mask in pruner.masks(model, ctx)}
        else:
            self.masks = {name: smallest(module, c.ratio, pattern) for name, module in prunable(model).items()}
        with torch.no_grad():
            for name, mask in self.masks.items():
                model.get_submodule(name).weight.mul_(mask)

    def _align(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Train the pruned model itself; what is zero has no gradient, and decay leaves it."""
        self.rest = others(model)
        model.requires_grad_(True)
        masks = {} if self.config.pruning in STRUCTURED else self.masks
        weights = {name: model.get_submodule(name).weight for name in masks}
        hooks = [weight.register_hook(lambda gradient, mask=masks[name]: gradient * mask) for name, weight in weights.items()]
        model = ctx.train(model, "align", share=self.config.align, select=False)
        for hook in hooks:
            hook.remove()
        return model

    def _recovered(self, name: str, layer: "LoraLinear") -> tuple[Tensor, Tensor]:
        """R's factors: B (out, r) and A (r, in) of the full shape."""
        up, down = layer.factors()
        out, into = self.shapes[name]
        return widened(up, 0, self.rows.get(name), out), widened(down, 1, self.columns.get(name), into)

    def _delta(self, name: str, layer: "LoraLinear") -> Tensor:
        """s R(B_P A_P), (out, in), float32."""
        if self.config.pruning in STRUCTURED:
            up, down = self._recovered(name, layer)
            return up @ down
        up, down = layer.factors()
        mask = self.masks[name]
        return (up @ down) * (mask.mT if weight_is_transposed(layer.stock()) else mask)

    def _to_full(self, model: nn.Module) -> None:
        if self.config.pruning in STRUCTURED:
            restore(model, self.kept, self.units)
        put(model, self.full)
        put_others(model, self.rest)


class LoraLinear(LowRankLinear):
    """y = W_P x + b + s B A x."""

    def __init__(self, base: nn.Module, config: Loram.Config, generator: torch.Generator) -> None:
        super().__init__(base, config.dropout)
        self.scale = config.alpha / config.r
        self.A = nn.Parameter(draws.kaiming((config.r, self.in_features), generator, self.device))
        self.B = nn.Parameter(torch.zeros(self.out_features, config.r, device=self.device))

    def chain(self) -> list[Tensor]:
        """A (r, in), B (out, r), s."""
        return [self.A, self.B, torch.tensor(self.scale, device=self.device)]


def staying(whole: list[Group], kept: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Map -> its rows, map -> its columns, that stay in the order of the small model; maps that lose none may be missing."""
    rows = {name: index[kept[g.key]].flatten().sort().values for g in whole for name, index in g.rows.items()}
    return rows, {name: index[kept[g.key]].flatten() for g in whole for name, index in g.columns.items()}


def widened(factor: Tensor, dim: int, place: Tensor | None, size: int) -> Tensor:
    """A factor with zeros where `place` does not name a row (dim 0) or column (dim 1); itself where nothing was cut."""
    if place is None:
        return factor
    shape = (size, factor.shape[1]) if dim == 0 else (factor.shape[0], size)
    return torch.zeros(shape, device=factor.device).index_copy_(dim, place.to(factor.device), factor)


def smallest(module: nn.Module, ratio: float, pattern: str) -> Tensor:
    """Mask, in the module's own orientation, without its smallest |w|; only its shape on the meta device."""
    if module.weight.is_meta:
        return torch.ones_like(module.weight, dtype=torch.bool)
    score, nm = matrix(module).abs(), nm_pattern("method.pattern", pattern)
    mask = nm_mask(score, *nm) if nm else layer_mask(score, ratio)
    return mask.mT.contiguous() if weight_is_transposed(module) else mask


def matrix(module: nn.Module) -> Tensor:
    """The weight as (out, in); a view without gradient."""
    weight = module.weight.detach()
    return weight.mT if weight_is_transposed(module) else weight


def stored(model: nn.Module) -> dict[str, Stored]:
    """A copy of all maps of the blocks."""
    copied = lambda p: None if p is None else p.detach().to("cpu", copy=True) if not p.is_meta else p.detach()  # noqa: E731
    return {name: (copied(module.weight), copied(module.bias)) for name, module in prunable(model).items()}


@torch.no_grad()
def put(model: nn.Module, maps: dict[str, Stored]) -> None:
    """Write stored maps into modules of their shapes."""
    for name, (weight, bias) in maps.items():
        module = model.get_submodule(name)
        module.weight.copy_(weight)
        if bias is not None:
            module.bias.copy_(bias)


def others(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the backbone's parameters outside the blocks' maps: embeddings, norms, a language model's head."""
    maps, heads = {id(p) for module in prunable(model).values() for p in module.parameters()}, head_names(model)
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if id(p) not in maps and name not in heads}


@torch.no_grad()
def put_others(model: nn.Module, parameters: dict[str, Tensor]) -> None:
    """Write parameters back by name."""
    for name, value in parameters.items():
        model.get_parameter(name).copy_(value)
