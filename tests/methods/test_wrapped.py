"""The contract of own adapters: folding equals the forward pass, for chains, stacks, Conv1D, shared maps and half precision."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from methods.adapters.own_base import fold, insert, wrapped
from methods.adapters.wrapped import LowRankLinear, map_shape, weight_and_bias
from methods.maths.draws import kaiming, normal, uniform

OUT, IN = 5, 7


class Chain(LowRankLinear):
    def __init__(self, base: nn.Module, steps: Sequence[Tensor]) -> None:
        super().__init__(base)
        self.steps = nn.ParameterList(nn.Parameter(step) for step in steps)

    def chain(self) -> Sequence[Tensor]:
        return list(self.steps)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


def base(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Conv1D(OUT, IN) if kind == "conv1d" else nn.Linear(IN, OUT, bias=kind == "linear")


CHAINS = {
    "two": ([draw(3, IN), draw(OUT, 3)], 3),
    "gated": ([draw(3, IN), draw(3), draw(OUT, 3)], 3),
    "core": ([draw(4, IN), draw(2, 4), draw(OUT, 2)], 2),
    "scaled": ([draw(3, IN), torch.tensor(0.5), draw(OUT, 3)], 3),
    "vectors at the ends": ([draw(IN), draw(2, IN), draw(OUT, 2), draw(OUT)], 2),
}


@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d"])
@pytest.mark.parametrize("name", CHAINS)
def test_folded_and_factors_are_the_forward_pass(kind: str, name: str) -> None:
    steps, rank = CHAINS[name]
    layer = Chain(base(kind), steps)
    x = draw(4, IN)
    weight, bias = layer.folded()
    expected = layer(x).detach()
    assert torch.allclose(nn.functional.linear(x, weight, bias), expected, atol=1e-5)
    up, down = layer.factors()
    assert (up.shape, down.shape) == ((OUT, rank), (rank, IN))
    assert torch.allclose(layer.base_layer(x) + x @ (up @ down).T, expected, atol=1e-5)
    stock = layer.unwrapped()
    assert type(stock) is type(base(kind)) and torch.allclose(stock(x), expected, atol=1e-5)


def test_adapters_stack() -> None:
    inner = Chain(base("conv1d"), CHAINS["two"][0])
    outer = Chain(inner, CHAINS["core"][0])
    x = draw(4, IN)
    expected = outer(x).detach()
    assert map_shape(outer) == (OUT, IN)
    model = nn.Sequential(outer)
    assert list(wrapped(model)) == ["0"]
    fold(model)
    assert type(model[0]) is Conv1D and torch.allclose(model(x), expected, atol=1e-5)


def test_a_module_used_twice_is_wrapped_once_in_both_places() -> None:
    shared = base("linear")
    model = nn.ModuleDict({"a": shared, "b": shared})
    insert(model, {"a": Chain(shared, CHAINS["two"][0])})
    assert isinstance(model["a"], Chain) and model["a"] is model["b"]
    expected = model["a"](draw(4, IN)).detach()
    fold(model)
    assert model["a"] is model["b"] is shared and torch.allclose(shared(draw(4, IN)), expected, atol=1e-5)


def test_tied_weights_are_cut_and_folded_once_each() -> None:
    """Two maps that share one parameter get two adapters: each must end with its own."""
    first, second = base("no bias"), base("no bias")
    second.weight = first.weight
    model = nn.ModuleList([Chain(first, CHAINS["two"][0]), Chain(second, CHAINS["core"][0])])
    x = draw(4, IN)
    expected = [layer(x).detach() for layer in model]
    fold(model)
    assert all(torch.allclose(layer(x), y, atol=1e-5) for layer, y in zip(model, expected, strict=True))


def test_half_precision_is_rounded_once() -> None:
    stock = base("linear").bfloat16()
    weight, _ = weight_and_bias(stock)
    layer = Chain(stock, CHAINS["two"][0])
    up, down = layer.factors()
    y = layer(draw(4, IN).bfloat16())
    assert y.dtype == torch.bfloat16 and up.dtype == torch.float32
    assert torch.equal(layer.unwrapped().weight, (weight + up @ down).bfloat16())


@pytest.mark.parametrize(
    "draws", [lambda g, d: normal((3, 4), 0.5, g, d), lambda g, d: uniform((3, 4), 0.5, g, d), lambda g, d: kaiming((3, 4), g, d)]
)
def test_draws_come_from_the_generator_and_cost_nothing_on_meta(draws: object) -> None:
    def first(device: str) -> Tensor:
        return draws(torch.Generator().manual_seed(3), device)

    assert torch.equal(first("cpu"), first("cpu")) and first("meta").is_meta
    assert first("meta").shape == (3, 4) and first("cpu").abs().max() > 0


def test_kaiming_is_torchs() -> None:
    """Bound 1 / sqrt(fan_in) as nn.Linear draws: the spread of many draws is bound / sqrt(3)."""
    values = kaiming((200, 50), torch.Generator().manual_seed(0), "cpu")
    assert values.abs().max() <= 50**-0.5
    assert values.std().item() == pytest.approx((1 / (3 * 50)) ** 0.5, rel=0.02)
