"""Partly trained linear maps against dense autograd; what they keep for the backward pass."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from methods.maths.partial import Columns, Entries, Part, Rows, partial_linear

OUT, IN = 5, 7
PLACES = {
    "columns": (Columns, torch.tensor([4, 1, 6]), (OUT, 3)),
    "column range": (Columns, slice(2, 5), (OUT, 3)),
    "rows": (Rows, torch.tensor([3, 0]), (2, IN)),
    "row range": (Rows, slice(1, 3), (2, IN)),
    "entries": (Entries, torch.tensor([33, 0, 12, 8], dtype=torch.int32), (4,)),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scattered(weight: Tensor, values: Tensor, part: Part) -> Tensor:
    """W' written down entry by entry, differentiable in `values`."""
    numbers = torch.arange(OUT * IN).view(OUT, IN)
    flat = part.where.long() if isinstance(part, Entries) else numbers[:, part.where] if isinstance(part, Columns) else numbers[part.where]
    base = weight.flatten() if part.adds else weight.flatten().scatter(0, flat.flatten(), 0.0)
    return base.scatter_add(0, flat.flatten(), part.scale * values.flatten()).view(OUT, IN)


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("place", PLACES)
def test_output_and_gradients_are_those_of_dense_autograd(place: str, scale: float, adds: bool) -> None:
    kind, where, shape = PLACES[place]
    part = kind(where, adds, scale)
    x, weight, bias, values, slope = draw(2, 3, IN), draw(OUT, IN, seed=1), draw(OUT, seed=2), draw(*shape, seed=3), draw(2, 3, OUT, seed=4)
    inputs = [[x.clone().requires_grad_(), values.clone().requires_grad_()] for _ in range(2)]
    y = partial_linear(inputs[0][0], weight, bias, inputs[0][1], part)
    expected = linear(inputs[1][0], scattered(weight, inputs[1][1], part), bias)
    assert torch.allclose(y, expected, atol=1e-12)
    y.backward(slope), expected.backward(slope)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-12) for a, b in zip(*inputs, strict=True))


@pytest.mark.parametrize("place", PLACES)
def test_a_transposed_weight_gives_the_same(place: str) -> None:
    kind, where, shape = PLACES[place]
    part, weight, values, x = kind(where, True, 1.0), draw(OUT, IN), draw(*shape, seed=1).requires_grad_(), draw(4, IN, seed=2)
    stored = weight.mT.contiguous().mT
    assert torch.equal(part.of(stored), part.of(weight))
    outputs = [partial_linear(x, w, None, values, part) for w in (weight, stored)]
    assert torch.equal(*outputs)
    slopes = [torch.autograd.grad(y.square().sum(), values)[0] for y in outputs]
    assert torch.equal(*slopes)


def saved(x: Tensor, weight: Tensor, values: Tensor, part: Part) -> list[Tensor]:
    """What autograd keeps, without parameters."""
    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        partial_linear(x, weight, None, values, part)
    own = {weight.data_ptr(), values.data_ptr()}
    return [t for t in held if t.data_ptr() not in own]


def test_columns_keep_r_features_and_rows_and_entries_x_itself() -> None:
    x, weight = draw(6, IN).requires_grad_(), draw(OUT, IN, seed=1)
    for place, (kind, where, shape) in PLACES.items():
        (kept,) = saved(x, weight, draw(*shape).requires_grad_(), kind(where, True))
        if place.startswith("column"):
            assert kept.shape == (6, 3) and kept.untyped_storage().nbytes() == 6 * 3 * 8
        else:
            assert kept.data_ptr() == x.data_ptr()
        assert saved(x, weight, draw(*shape), kind(where, True)) == []


def test_half_precision_changes_are_rounded_once() -> None:
    weight, values = draw(OUT, IN).bfloat16(), (1e-3 * draw(OUT, 3, seed=1)).float()
    part = Columns(torch.tensor([4, 1, 6]), True)
    expected = weight.float()
    expected[:, [4, 1, 6]] += values
    assert torch.equal(part.changed(weight, values, torch.bfloat16), expected.bfloat16())
    assert torch.equal(part.changed(weight, values, torch.float32), expected)
    x = draw(3, IN, seed=2).bfloat16()
    values.requires_grad_()
    y = partial_linear(x, weight, None, values, part)
    assert y.dtype == torch.bfloat16 and torch.equal(y, linear(x, expected.bfloat16()))
    y.sum().backward()
    assert values.grad.dtype == torch.float32


def test_entries_show_the_dense_gradient() -> None:
    seen: list[Tensor] = []
    x, weight, values = draw(6, IN), draw(OUT, IN, seed=1), draw(2, seed=2).requires_grad_()
    partial_linear(x, weight, None, values, Entries(torch.tensor([3, 20]), True, watch=seen.append)).sum().backward()
    (dense,) = seen
    assert torch.allclose(dense, torch.ones(OUT, 6, dtype=torch.float64) @ x)
    assert torch.equal(values.grad, dense.flatten()[[3, 20]])
