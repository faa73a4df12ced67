"""What ends a cell without a record: divergence and interruption, as types that the dispatcher can name."""

import math

import torch
from torch import nn

from methods.spec import Diverged

__all__ = ["Diverged", "Interrupted", "check_finite", "check_weights"]


class Interrupted(RuntimeError):
    """A stop was asked for; the newest checkpoint is on disk and the cell can be resumed."""


def check_finite(what: str, value: float, step: int) -> None:
    """Raise `Diverged` if a logged scalar is not finite."""
    if not math.isfinite(value):
        raise Diverged(f"{what} is {value} at step {step}")


def check_weights(model: nn.Module) -> None:
    """Raise `Diverged` if any floating-point parameter holds a NaN or an infinity."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise Diverged(f"the weights of {name} are not finite")
