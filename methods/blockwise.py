"""Through a model block by block on calibration text: what enters every linear map, with one block's statistics in memory at a time.

The inputs of block b come from the blocks before it as they are after their own edit (Frantar & Alistarh 2023, arXiv 2301.00774;
Sun et al. 2023, arXiv 2306.11695). All maps of a block are seen before any of them is edited.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from methods.roles import layers, prunable, unwrap
from methods.spec import Diverged, UserError


class Statistic(Protocol):
    """What is kept of a map's inputs."""

    def add(self, x: Tensor) -> None:
        """One sequence, (tokens, in), float32."""


S = TypeVar("S", bound=Statistic)
Edit = Callable[[str, nn.Module, S], None]


@dataclass
class _Call(Generic[S]):
    """How the model calls one of its blocks: everything but the hidden states, which are the same for all sequences of one length."""

    block: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __call__(self, states: Tensor) -> Tensor:
        return _states_of(self.block(states, *self.args, **self.kwargs))


@torch.no_grad()
def walk(model: nn.Module, ids: Tensor, statistic: Callable[[nn.Module], S], edit: Edit[S]) -> None:
    """Call `edit(name, module, statistic)` for every linear map of the blocks, in layer order.

    `ids`: token ids (sequences, length) without padding. `statistic` makes the accumulator of a map. Sequences go through a block one by
    one; their hidden states lie on the model's device. `UserError` for a model that computes something between its blocks, `Diverged` where
    hidden states are not finite.
    """
    with _eval(model):
        calls = _calls(model, ids[:1])
        states = [_entrance(model, row[None], calls[0].block) for row in ids]
        for index, call in enumerate(calls):
            maps = _maps(model, call.block)
            _refuse_nan(states, index)
            statistics = _observed(call, maps, states, statistic)
            for name, module in maps.items():
                edit(name, module, statistics.pop(name))
            if index < len(calls) - 1:
                states = [call(x) for x in states]


def _refuse_nan(states: list[Tensor], index: int) -> None:
    if not all(x.isfinite().all() for x in states):
        raise Diverged(f"the hidden states that enter block {index} are not finite on the calibration text")


def _observed(call: _Call, maps: dict[str, nn.Module], states: list[Tensor], statistic: Callable[[nn.Module], S]) -> dict[str, S]:
    found = {name: statistic(module) for name, module in maps.items()}
    hooks = [module.register_forward_pre_hook(_adding(found[name])) for name, module in maps.items()]
    for x in states:
        call(x)
    for hook in hooks:
        hook.remove()
    return found


def _adding(statistic: Statistic) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, args: statistic.add(args[0].flatten(0, -2).float())


def _maps(model: nn.Module, block: nn.Module) -> dict[str, nn.Module]:
    inside = {id(module) for module in block.modules()}
    return {name: module for name, module in prunable(model).items() if id(module) in inside}


def _calls(model: nn.Module, ids: Tensor) -> list[_Call]:
    """The call of every block, from one pass over one sequence."""
    calls: list[_Call] = []
    left: list[Tensor] = []

    def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states, rest, named = _split(args, kwargs)
        _refuse_nan([states], len(calls))
        if left and not torch.equal(left.pop(), states):
            kind = unwrap(model).config.model_type
            raise UserError(f"{kind} computes something between its blocks, so it cannot be calibrated block by block; use another model")
        calls.append(_Call(block, rest, named))

    def leave(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        left.append(_states_of(output))

    blocks = layers(model)
    hooks = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    try:
        _forward(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


class _Entered(Exception):
    """Carries the inputs of the first block out of a forward pass."""


def _entrance(model: nn.Module, ids: Tensor, first: nn.Module) -> Tensor:
    """The hidden states (1, length, d) that enter the first block."""

    def stop(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Entered(_split(args, kwargs)[0])

    hook = first.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        _forward(model, ids)
    except _Entered as entered:
        return entered.args[0]
    finally:
        hook.remove()
    raise RuntimeError("the model did not call its first block")


def _forward(model: nn.Module, ids: Tensor) -> None:
    backbone = unwrap(model).base_model
    ids = ids.to(next(backbone.parameters()).device)
    backbone(input_ids=ids, attention_mask=torch.ones_like(ids), **({"use_cache": False} if hasattr(backbone.config, "use_cache") else {}))


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Hidden states, the other positional and the named arguments of a block's call."""
    if args:
        return args[0], args[1:], dict(kwargs)
    return kwargs["hidden_states"], (), {key: value for key, value in kwargs.items() if key != "hidden_states"}


def _states_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
