"""The groups of a running phase's optimizer: how parameters join them, and how its state lies in a checkpoint, by parameter name.

A state by name has the form of `Optimizer.state_dict` with names in place of indices, so that it fits an optimizer that was built with
other groups, or with the same parameters in another order.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

BIRTH = "birth"
"""The option of a group whose schedule began after that many updates."""


def names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Names of the optimizer's parameters in the order of its groups, which is that of its state's indices."""
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    return [named[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def by_name(state: dict[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """A state dict with the names of `order` in place of indices."""
    groups = [{**group, "params": [order[index] for index in group["params"]]} for group in state["param_groups"]]
    return {"param_groups": groups, "state": {order[index]: values for index, values in state["state"].items()}}


def regroup(optimizer: torch.optim.Optimizer, model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Give `optimizer` the groups of a state by name; that state with indices, for `load_state_dict`.

    `RuntimeError` where the two do not hold the same parameters.
    """
    saved = [name for group in state["param_groups"] for name in group["params"]]
    if different := sorted(set(saved) ^ set(names(optimizer, model)), key=str):
        raise RuntimeError(f"the optimizer of the checkpoint and that of the model differ in {different[:3]}")
    parameters = dict(model.named_parameters())
    optimizer.param_groups[:] = [{"params": [parameters[name] for name in group["params"]]} for group in state["param_groups"]]
    index = {name: i for i, name in enumerate(saved)}
    groups = [{**group, "params": [index[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"param_groups": groups, "state": {index[name]: values for name, values in state["state"].items()}}


def join(
    optimizer: torch.optim.Optimizer, scheduler: LambdaLR, parameters: Sequence[nn.Parameter], like: nn.Parameter, restart: bool
) -> None:
    """A new group of `parameters` with the options of the group of `like`; with `restart` its schedule begins at the next step.

    To be called between an update and the scheduler's step. `ValueError` where no group holds `like`.
    """
    group = next((group for group in optimizer.param_groups if any(p is like for p in group["params"])), None)
    if group is None:
        raise ValueError("add_parameters: the optimizer does not hold `like`, whose options the new parameters are to have")
    birth = {BIRTH: scheduler.last_epoch + 1} if restart else {}
    optimizer.add_param_group({**group, **birth, "params": list(parameters)})
    scheduler.base_lrs.append(group["initial_lr"])
    reschedule(optimizer, scheduler)


def reschedule(optimizer: torch.optim.Optimizer, scheduler: LambdaLR) -> None:
    """Give each group its schedule: that of the phase (the first group is always there from the start), or its own from its birth on."""
    whole = scheduler.lr_lambdas[0]
    scheduler.lr_lambdas = [_from(whole, group[BIRTH]) if BIRTH in group else whole for group in optimizer.param_groups]


def _from(schedule: partial[float], birth: int) -> Callable[[int], float]:
    """A schedule of transformers with the same warmup, over the steps that are left after `birth` updates."""
    keywords = dict(schedule.keywords)
    if "num_training_steps" in keywords:
        keywords["num_training_steps"] -= birth
    own = partial(schedule.func, **keywords)
    return lambda step: own(step - birth)
