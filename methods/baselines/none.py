"""The untouched model: theta stays as published; evaluated only."""

from dataclasses import dataclass

from torch import nn

from methods.base import Context, Method
from methods.spec import Traits


class NoMethod(Method):
    """Neither trains nor compresses: the dense row of a compression table."""

    @dataclass
    class Config:
        """No hyperparameters."""

    traits = Traits(families=("decoder",), trains=False, gradients=False)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Nothing requires gradients."""
        return model.requires_grad_(False)

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model as it is."""
        return model
