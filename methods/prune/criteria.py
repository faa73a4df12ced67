"""One-shot pruning by name, for techniques that prune and then do something else: the masks and weights of the pruners themselves."""

import torch
from torch import Tensor, nn

from methods.base import Context
from methods.prune.magnitude import Magnitude
from methods.prune.masked import MaskedMethod
from methods.prune.random_mask import RandomMask
from methods.prune.sparsegpt import Sparsegpt
from methods.prune.wanda import Wanda
from methods.roles import prunable_parameters


def pruner(criterion: str, sparsity: float, pattern: str) -> MaskedMethod:
    """The method behind `magnitude`, `random`, `wanda` or `sparsegpt`: every matrix (wanda: every row) has the sparsity."""
    shared = {"sparsity": sparsity, "pattern": pattern, "retrain": False}
    uniform = {"allocation": "uniform", "owl_times": 5.0, "owl_reach": 0.0}
    if criterion == "magnitude":
        ramp = {"initial_sparsity": 0.0, "initial_warmup": 0.0, "final_warmup": 0.0, "interval": 1, "allow_regrow": False}
        return Magnitude(Magnitude.Config(**shared, scope="layer", when="one_shot", cycles=1, rewind="none", **ramp, **uniform))
    if criterion == "random":
        return RandomMask(RandomMask.Config(**shared, scope="layer"))
    if criterion == "wanda":
        return Wanda(Wanda.Config(**shared, scope="row", variant=False, **uniform))
    if criterion == "sparsegpt":
        return Sparsegpt(Sparsegpt.Config(**shared, block=128, damp=0.01, **uniform))
    raise ValueError(f"there is no pruner for {criterion}")


@torch.no_grad()
def prune(model: nn.Module, ctx: Context, criterion: str, sparsity: float, pattern: str) -> dict[str, Tensor]:
    """Zero the prunable weights that lose, in place; masks (True = kept) by parameter name, in the parameter's own orientation.

    `none` keeps the zeros that are there. `sparsegpt` also moves the weights that stay. `wanda` and `sparsegpt` look at
    `ctx.calibration()`. On the meta device only shapes count.
    """
    weights = prunable_parameters(model)
    if criterion == "none":
        return {name: weight != 0 for name, weight in weights.items()}
    masks = dict(pruner(criterion, sparsity, pattern).masks(model, ctx))
    for name, mask in masks.items():
        weights[name].mul_(mask)
    return masks
