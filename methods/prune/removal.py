"""Base of the techniques that remove heads and channels: what the small model is when it is exported and how it comes back.

Blocks of equal shapes are a stock checkpoint of that size. Otherwise stock transformers has no configuration for the model: the
checkpoint then has the original shapes with zeros where units were, and the list of the units that stay lies beside it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Context, Method
from methods.prune.structured import groups, remove, restore, uniform_config
from methods.roles import unwrap

PREFIX = "kept."


class RemovalMethod(Method):
    """A subclass calls `cut` once, when the units that stay are known."""

    def cut(self, model: nn.Module, kept: dict[str, Tensor]) -> nn.Module:
        """Remove all units but `kept` (group -> ascending indices; a group that is not named stays whole)."""
        self.before = sum(p.numel() for p in model.parameters())
        self.units = {group.key: group.units for group in groups(model)}
        self.kept = {key: kept.get(key, torch.arange(count)) for key, count in self.units.items()}
        remove(model, self.kept)
        return model

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Units that are left by group, and the share of all parameters that went."""
        left = sum(p.numel() for p in model.parameters())
        kept = {key: [len(index), self.units[key]] for key, index in self.kept.items()}
        return {"kept_units": kept, "parameters_removed": 1 - left / self.before}

    def detach(self, model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
        """A stock model of the small size where there is one, else one of the original size with zeros and the kept units."""
        config = uniform_config(model)
        if config is not None:
            unwrap(model).config = config
            return model, {}
        restore(model, self.kept, self.units)
        return model, {PREFIX + key: index for key, index in self.kept.items()}

    def attach(self, model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
        """Remove the zeros again."""
        remove(model, {key.removeprefix(PREFIX): index for key, index in tensors.items()})
        return model
