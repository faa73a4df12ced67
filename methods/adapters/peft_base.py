"""Base of the methods that wrap PEFT: a subclass says which PEFT configuration it is, this file does the rest.

Targets are roles (`methods/roles.py`), so one configuration fits every family. On a family that fuses q, k and v in one map (gpt2,
gpt_neox) each of these roles stands for the whole fused map: lora on [q, v] then adapts k too, and (IA)^3 on [k, v] scales q too.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from methods.adapters.own_base import insert
from methods.base import Context, Method
from methods.roles import head_names, role_names, weight_is_transposed

ADAPTER = "default"
"""PEFT's name of the one adapter."""


class PeftMethod(Method):
    """Insert PEFT adapters, train them with the task head, merge them into a stock model."""

    def peft_config(self, model: nn.Module) -> PeftConfig:
        """The PEFT configuration for this model, without a task type: the head is this class's business."""
        raise NotImplementedError

    def prepare(self, model: nn.Module, ctx: Context) -> PeftModel:
        """Wrap the model; PEFT draws its initialisation from torch's global generator, which the harness seeds."""
        wrapped = wrap(model, self.peft_config(model))
        for name in head_names(wrapped):
            wrapped.get_parameter(name).requires_grad_(True)
        for layer in adapted(wrapped).values():
            layer.register_forward_hook(autocast_type)
        return wrapped

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The stock model with every adapter merged in float32; all its parameters require gradients again."""
        for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
            merge_float32(layer)
        return model.unload().requires_grad_(True)


def autocast_type(layer: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
    """Forward hook: autocast's type, as of a stock map; some tuners give their input's, and DeBERTa's mask does not fit then."""
    kind = y.device.type
    return y.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else y


def target_modules(model: nn.Module, roles: Sequence[str]) -> dict[str, Any]:
    """PEFT's `target_modules` and `fan_in_fan_out` for roles: full names, so that no module is caught by a common suffix."""
    names = role_names(model, roles)
    return {"target_modules": names, "fan_in_fan_out": weight_is_transposed(model.get_submodule(names[0]))}


def adapted(model: nn.Module) -> dict[str, BaseTunerLayer]:
    """The adapted layers by the name that their module has in the stock model."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    return {name.removeprefix("base_model.model."): module for name, module in layers}


@torch.no_grad()
def lora_factors(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """(s B (out, r), A (r, in)), float32, of every LoRA layer by stock module name; their product is what PEFT adds to the weight."""
    return {
        name: (layer.scaling[ADAPTER] * layer.lora_B[ADAPTER].weight.float(), layer.lora_A[ADAPTER].weight.float().clone())
        for name, layer in adapted(model).items()
    }


class LinearConv1D(nn.Linear):
    """A Conv1D that PEFT takes for an nn.Linear: `weight` reads as (out, in), the parameter itself stays Conv1D's (in, out)."""

    def __init__(self, base: Conv1D) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.weight.shape
        self._parameters["weight"] = base.weight
        self.bias = base.bias

    @property
    def weight(self) -> Tensor:
        """A view (out, in), into which may be written."""
        return self._parameters["weight"].mT


def convert_conv1d(model: nn.Module, names: Sequence[str]) -> None:
    """For tuners of PEFT that know nn.Linear alone: put a `LinearConv1D` in the place of every Conv1D among these modules."""
    bases = {name: model.get_submodule(name) for name in names}
    insert(model, {name: LinearConv1D(base) for name, base in bases.items() if isinstance(base, Conv1D)})


def restore_conv1d(model: nn.Module) -> nn.Module:
    """The inverse of `convert_conv1d`, in place; before PEFT unloads, which assigns to `weight`."""
    for name, module in [(name, module) for name, module in model.named_modules() if isinstance(module, LinearConv1D)]:
        with torch.device("meta"):
            stock = Conv1D(module.out_features, module.in_features)
        stock.weight, stock.bias = module._parameters["weight"], module.bias
        model.set_submodule(name, stock.train(module.training))
    return model


def wrap(model: nn.Module, config: PeftConfig) -> PeftModel:
    """`get_peft_model` without the deprecation warning that it causes in transformers 5."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        on_meta = next(model.parameters()).is_meta
        return get_peft_model(model, config, low_cpu_mem_usage=on_meta)


def merge_float32(layer: BaseTunerLayer) -> None:
    """Merge one adapter into its base layer; a half-precision weight is rounded once, after the sum."""
    base = layer.get_base_layer()
    dtype = base.weight.dtype
    base.float()
    layer.merge()
    base.to(dtype)


def split_groups(model: nn.Module, groups: list[dict[str, Any]], mark: str, **changes: Any) -> list[dict[str, Any]]:
    """Groups in which the parameters with `mark` in their names stand apart, under the changed options."""
    marked = {id(p) for name, p in model.named_parameters() if mark in name}
    apart = [
        {**group, **(changes if inside else {}), "params": [p for p in group["params"] if (id(p) in marked) == inside]}
        for group in groups
        for inside in (False, True)
    ]
    return [group for group in apart if group["params"]]
