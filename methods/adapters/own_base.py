"""Base of the own adapters: a subclass says how one linear map is wrapped, this file inserts the wrappers and folds them back."""

from dataclasses import dataclass

from torch import Tensor, nn

from methods.adapters.wrapped import LowRankLinear, WrappedLinear
from methods.base import Context, Method, freeze_backbone
from methods.roles import role_names


class AdapterMethod(Method):
    """Wrap the targets, train the wrappers with the task head, fold into a stock model."""

    def wrap(self, base: nn.Module, name: str, ctx: Context) -> WrappedLinear:
        """The wrapper of one target; `name` is its full name, for `ctx.generator`."""
        raise NotImplementedError

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Freeze the backbone and wrap every target, in layer order."""
        freeze_backbone(model)
        insert(model, {name: self.wrap(model.get_submodule(name), name, ctx) for name in role_names(model, self.config.targets)})
        return model

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The stock model with every wrapper folded in float32; all its parameters require gradients again."""
        fold(model)
        return model.requires_grad_(True)

    def lora(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """The factors of the targets whose delta is low-rank."""
        return {name: layer.factors() for name, layer in wrapped(model).items() if isinstance(layer, LowRankLinear)}


def wrapped(model: nn.Module) -> dict[str, WrappedLinear]:
    """The outermost wrappers by full name."""
    found: dict[str, WrappedLinear] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, WrappedLinear) and not inside:
            found[name] = module
    return found


def insert(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Put modules in the place of those with their names, and in every other place where the same module is used."""
    new = {id(model.get_submodule(name)): module for name, module in modules.items()}
    places = [(name, new[id(old)]) for name, old in model.named_modules(remove_duplicate=False) if id(old) in new]
    for name, module in places:
        model.set_submodule(name, module)


def fold(model: nn.Module) -> None:
    """Put the folded stock module in the place of every wrapper."""
    once = {id(layer): (name, layer) for name, layer in wrapped(model).items()}  # a layer used twice is folded once
    insert(model, {name: layer.unwrapped() for name, layer in once.values()})


@dataclass
class Kept:
    """A wrapper that is about to be folded, with the weight and bias of its stock module, so that it can be folded again."""

    layer: WrappedLinear
    weight: nn.Parameter
    bias: nn.Parameter | None


def keep(model: nn.Module) -> list[Kept]:
    """The wrappers of a model; call it before `fold`. It costs no memory but that of the base weights, which `fold` would free."""
    layers = {id(layer): layer for layer in wrapped(model).values()}
    return [Kept(layer, layer.stock().weight, layer.stock().bias) for layer in layers.values()]


def refold(kept: list[Kept]) -> None:
    """Fold wrappers, whose parameters or settings have changed, anew into the stock modules that `fold` left in the model."""
    for one in kept:
        stock = one.layer.stock()
        stock.weight, stock.bias = one.weight, one.bias
        one.layer.unwrapped()
