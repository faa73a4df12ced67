"""Base of the adapters that follow a sub-layer: h <- h + f(h), h = W x + b the output of a block's last map before the residual sum.

f holds a nonlinearity, so it folds into no stock module: `detach` and `attach` carry it beside the stock checkpoint. The adapter wraps
the linear map itself, which every family has; what a family does between that map and the residual sum (dropout, the second norm of
gemma2) comes after the adapter. In eval mode dropout is nothing, so the function is that of an adapter behind the dropout.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.own_base import insert
from methods.adapters.wrapped import map_shape
from methods.base import Context, Method, freeze_backbone
from methods.roles import norms, role_names

Generators = Callable[[str], torch.Generator]
"""Name -> seeded generator."""


class Serial(nn.Module):
    """A linear map (..., in) -> (..., out) with an adapter `f` (..., out) -> (..., out) behind it, added to its output."""

    def __init__(self, base: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.adapter = base, adapter

    def forward(self, x: Tensor) -> Tensor:
        """h + f(h), in the dtype of h; f computes in its own."""
        h = self.base_layer(x)
        return h + self.adapter(h.to(next(self.adapter.parameters()).dtype)).to(h.dtype)


class SerialMethod(Method):
    """Adapters behind the targets (roles `o` and `down`), trained with the task head and, on demand, all normalisations."""

    def adapters(self, bases: dict[str, nn.Module], generator: Generators) -> dict[str, nn.Module]:
        """The adapter of every target map, by its name, on its device; they may share parameters."""
        raise NotImplementedError

    def put(self, model: nn.Module, names: list[str], generator: Generators) -> None:
        """Insert an adapter behind each of the named maps."""
        bases = {name: model.get_submodule(name) for name in names}
        made = self.adapters(bases, generator)
        insert(model, {name: Serial(base, made[name]) for name, base in bases.items()})

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Freeze the backbone, insert the adapters, unfreeze the normalisations where asked."""
        freeze_backbone(model)
        self.put(model, role_names(model, self.config.targets), ctx.generator)
        for norm in norms(model).values() if self.config.norms else ():
            norm.requires_grad_(True)
        return model

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The adapters stay, rounded to the dtype of the maps that they follow; all parameters require gradients again."""
        for layer in serials(model).values():
            layer.adapter.to(layer.base_layer.weight.dtype)
        return model.requires_grad_(True)

    def detach(self, model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
        """The stock model, and the adapters' parameters under their names in `model`; a shared one once."""
        tensors = {name: parameter.detach() for name, parameter in adapter_parameters(model).items()}
        insert(model, {name: layer.base_layer for name, layer in serials(model).items()})
        return model, tensors

    def attach(self, model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
        """Insert adapters of the same shapes and give them the tensors; `ValueError` where names or shapes are others."""
        self.put(model, role_names(model, self.config.targets), lambda _: torch.Generator())
        own = adapter_parameters(model)
        if _shapes(own) != _shapes(tensors):
            raise ValueError(f"the {len(tensors)} adapter tensors do not fit the {len(own)} that {type(self).__name__} inserts")
        for name, parameter in own.items():
            parameter.data = tensors[name].to(parameter.device)
        return model


def serials(model: nn.Module) -> dict[str, Serial]:
    """The maps with an adapter behind them, by full name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Serial)}


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of all adapters by full name; a shared one under its first."""
    inside = {id(parameter) for layer in serials(model).values() for parameter in layer.adapter.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in inside}


def width_and_device(base: nn.Module) -> dict[str, Any]:
    """`width` (the outputs of a map) and `device`, as an adapter behind it needs them."""
    return {"width": map_shape(base)[0], "device": base.weight.device}


def _shapes(tensors: dict[str, Any]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
