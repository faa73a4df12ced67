"""Base of the methods that keep W * M for a fixed mask M: a subclass says how weights are scored, this file does the rest.

Weights are the prunable ones of the roles table; embeddings, norms, heads and routers stay dense. Scores and masks are made in
the orientation (..., out, in); fused (experts, out, in) parameters count as one matrix per expert.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Context, Method
from methods.maths.masks import global_masks, layer_mask, nm_mask, row_mask
from methods.roles import prunable_parameters, unwrap, weight_is_transposed
from methods.spec import UserError, nm_pattern

SUFFIX = "_mask"
"""The mask of parameter `weight` is the buffer `weight_mask` of the same module."""


class MaskedMethod(Method):
    """One-shot mask at `prepare`; with `retrain`, training under it: gradients and updated weights are masked."""

    def scorer(self, ctx: Context) -> Callable[[Tensor], Tensor]:
        """A function from a weight (..., out, in) to scores of its shape; the larger stay. Called once per weight, in order."""
        raise NotImplementedError

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Zero the weights that lose, keep the masks in buffers and mask the gradients before they are clipped.

        Without `retrain` nothing requires gradients.
        """
        model.requires_grad_(self.config.retrain)
        weights = prunable_parameters(model)
        self.zeros_before = _zeros(weights)
        self.hooks = []
        for name, mask in self.masks(model, ctx):
            module, parameter = _owner(model, name)
            module.register_buffer(parameter + SUFFIX, mask)
            if self.config.retrain:
                self.hooks.append(weights[name].register_hook(_masking(module, parameter)))
        apply_masks(model)
        return model

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Train under the masks, or leave the weights as pruned."""
        return ctx.train(model) if self.config.retrain else model

    def on_update(self, model: nn.Module, step: int, ctx: Context) -> None:
        """Masked weights are zero again, whatever the optimizer did to them."""
        apply_masks(model)

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The stock model with exact zeros: buffers and hooks are gone."""
        for hook in self.hooks:
            hook.remove()
        for module, name, _ in list(masked(model)):
            delattr(module, name + SUFFIX)
        return model

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Share of zeros over all prunable weights and per parameter, and how many of them the loaded model had."""
        weights = prunable_parameters(model)
        total = sum(weight.numel() for weight in weights.values())
        zeros = {name: int((weight == 0).sum()) for name, weight in weights.items()}
        return {
            "sparsity": sum(zeros.values()) / total,
            "sparsity_by_parameter": {name: zeros[name] / weight.numel() for name, weight in weights.items()},
            "zeros_before": self.zeros_before,
            "prunable": total,
        }

    def masks(self, model: nn.Module, ctx: Context) -> Iterator[tuple[str, Tensor]]:
        """(parameter name, mask in the parameter's own orientation). On the meta device only shapes count."""
        weights = prunable_parameters(model)
        if any(weight.is_meta for weight in weights.values()):
            yield from ((name, torch.empty_like(weight, dtype=torch.bool)) for name, weight in weights.items())
            return
        score = self.scorer(ctx)
        flipped = {name: _flipped(model, name) for name in weights}
        scores = ((name, score(weight.detach().mT if flipped[name] else weight.detach())) for name, weight in weights.items())
        for name, mask in self._compare(scores, unwrap(model).config.model_type):
            yield name, mask.mT.contiguous() if flipped[name] else mask

    def _compare(self, scores: Iterator[tuple[str, Tensor]], kind: str) -> Iterator[tuple[str, Tensor]]:
        c = self.config
        nm = nm_pattern("method.pattern", c.pattern)
        if nm is None and c.scope == "global":
            yield from global_masks(dict(scores), c.sparsity).items()
            return
        for name, score in scores:
            width = score.shape[-1]
            if nm and width % nm[1]:
                raise UserError(f"method.pattern={c.pattern} needs input widths divisible by {nm[1]}; {name} of {kind} has {width}")
            yield name, nm_mask(score, *nm) if nm else (row_mask if c.scope == "row" else layer_mask)(score, c.sparsity)


def masked(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """(module, parameter name, mask) of every masked parameter."""
    for module in model.modules():
        buffers = dict(module.named_buffers(recurse=False))
        for name, _ in module.named_parameters(recurse=False):
            if name + SUFFIX in buffers:
                yield module, name, buffers[name + SUFFIX]


@torch.no_grad()
def apply_masks(model: nn.Module) -> None:
    """W <- W * M in place. A NaN stays a NaN, so that divergence is seen."""
    for module, name, mask in masked(model):
        module.get_parameter(name).mul_(mask)


def _masking(module: nn.Module, parameter: str) -> Callable[[Tensor], Tensor]:
    """A gradient hook that looks its mask up, so that it follows the module to another device."""
    return lambda gradient: gradient * module.get_buffer(parameter + SUFFIX)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, parameter = name.rpartition(".")
    return model.get_submodule(path), parameter


def _flipped(model: nn.Module, name: str) -> bool:
    return weight_is_transposed(_owner(model, name)[0])


def _zeros(weights: dict[str, nn.Parameter]) -> int:
    """Exact zeros; 0 on the meta device, where nothing is known."""
    return sum(int((weight == 0).sum()) for weight in weights.values() if not weight.is_meta)
