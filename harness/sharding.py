"""Fully sharded training (FSDP2): a sharded copy of a model, and whole tensors in and out of it.

The whole model stays beside the copy, unwrapped, for evaluation, checkpoints and the method's code after training. Cut over the
processes are the copy's weights, its gradients and the optimizer's state; a checkpoint is whole, so that any number of processes
resumes it.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from harness import distributed
from methods.roles import layers


def shard(model: nn.Module, device: str) -> nn.Module:
    """A copy of `model` in which each process keeps its part of every parameter: one group per transformer block, one for the rest."""
    copied = copy.deepcopy(model)
    mesh = init_device_mesh(torch.device(device).type, (distributed.world(),))
    for block in layers(copied):
        fully_shard(block, mesh=mesh)
    return fully_shard(copied, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether every parameter of a model is cut over processes."""
    return isinstance(model, FSDPModule) and all(isinstance(p, DTensor) for p in model.parameters())


@torch.no_grad()
def gather(sharded: nn.Module, model: nn.Module) -> None:
    """Copy what trains, and all buffers, from the sharded copy into the whole model. All processes must call it."""
    own = dict(model.named_parameters())
    for name, parameter in sharded.named_parameters():
        if parameter.requires_grad:
            own[name].copy_(whole(parameter))
    _copy_buffers(sharded, model)


@torch.no_grad()
def scatter(model: nn.Module, sharded: nn.Module) -> None:
    """The way back of `gather`."""
    own = dict(model.named_parameters())
    for name, parameter in sharded.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(_part(own[name], parameter))
    _copy_buffers(model, sharded)


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state dict with whole tensors on the CPU, in the first process (another's holds none). All must call it."""
    state = optimizer.state_dict()
    found = {i: {key: _on_main(value) for key, value in values.items()} for i, values in state["state"].items()}
    return {**state, "state": found}


def own_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A whole state dict cut as the optimizer's parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    cut = {i: {key: _part(value, parameters[i]) for key, value in values.items()} for i, values in state["state"].items()}
    return {**state, "state": cut}


def whole(value: Any) -> Any:
    """A sharded tensor as a whole one, anything else as it is. All processes must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _on_main(value: Any) -> Any:
    """Whole tensors one at a time, so that no other process ever holds more than one."""
    if not isinstance(value, DTensor):
        return value
    tensor = whole(value)
    return tensor.cpu() if distributed.is_main() else None


def _part(value: Any, like: Tensor) -> Any:
    """What this process keeps of a whole tensor shaped as `like`; anything else (a step counter) is kept as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.detach().to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    found = dict(source.named_buffers())
    for name, buffer in target.named_buffers():
        buffer.copy_(found[name])
