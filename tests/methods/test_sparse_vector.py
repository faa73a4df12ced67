"""Sparse vectors: apply and remove bit for bit, composition without an order, differences against dense arithmetic."""

import itertools

import pytest
import torch
from torch import Tensor

from methods.maths.sparse_vector import Entries, SparseVector, add, apply, count, difference, remove

Tensors = dict[str, Tensor]


def base(dtype: torch.dtype = torch.float32) -> Tensors:
    draws = torch.Generator().manual_seed(0)
    return {"a": torch.randn(6, 5, generator=draws).to(dtype), "b": torch.randn(11, generator=draws).to(dtype), "c": torch.ones(2)}


def copy(tensors: Tensors) -> Tensors:
    return {name: t.clone() for name, t in tensors.items()}


def changed(tensors: Tensors, seed: int, size: float = 0.05) -> Tensors:
    """A third of the entries of a and b moved."""
    draws = torch.Generator().manual_seed(seed)
    out = copy(tensors)
    for name in ("a", "b"):
        t = out[name]
        move = torch.randn(t.shape, generator=draws) * size * (torch.rand(t.shape, generator=draws) < 0.35)
        out[name] = (t.float() + move).to(t.dtype)
    return out


def dense(vector: SparseVector, like: Tensors) -> Tensors:
    out = {name: torch.zeros(t.numel()) for name, t in like.items()}
    for name, (index, value) in vector.items():
        out[name][index] = value
    return {name: t.view(like[name].shape) for name, t in out.items()}


def equal(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n].view(-1).view(torch.uint8), b[n].view(-1).view(torch.uint8)) for n in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.05, 1.0, 100.0])
def test_apply_gives_the_other_and_remove_the_base_bit_for_bit(dtype: torch.dtype, size: float) -> None:
    loaded = base(dtype)
    target = changed(loaded, 1, size)
    vector = difference(loaded, target)
    assert "c" not in vector and count(vector) == sum(int((loaded[n] != target[n]).sum()) for n in loaded)
    now = copy(loaded)
    replaced = apply(now, vector)
    for name in loaded:
        limit = 2**-23 * (target[name].float() - loaded[name].float()).abs().max().clamp(min=1)
        assert (now[name].float() - target[name].float()).abs().max() <= limit
        assert torch.equal(now[name], (loaded[name].float() + dense(vector, loaded)[name]).to(loaded[name].dtype))
    remove(now, replaced)
    assert equal(now, loaded)


def test_subtraction_would_leave_residue() -> None:
    """Why `remove` puts back instead: 1e8 + 1 - 1e8 is not 1 in float32."""
    loaded = {"a": torch.tensor([1.2345678])}
    vector = {"a": Entries(torch.tensor([0]), torch.tensor([1e4]))}
    now = copy(loaded)
    replaced = apply(now, vector)
    assert (now["a"] - vector["a"].value).item() != loaded["a"].item()
    remove(now, replaced)
    assert equal(now, loaded)


def test_a_change_within_a_factor_of_two_is_exact() -> None:
    loaded = {"a": torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 1}
    target = {"a": loaded["a"] * (torch.rand(1000, generator=torch.Generator().manual_seed(1)) + 0.5)}
    now = copy(loaded)
    apply(now, difference(loaded, target))
    assert equal(now, target)


def test_composition_is_commutative_and_adds_to_the_base() -> None:
    loaded = base()
    vectors = [difference(loaded, changed(loaded, seed, size)) for seed, size in ((1, 0.1), (2, 3.0), (3, 1e-4), (4, 50.0))]
    results = []
    for order in itertools.permutations(vectors):
        now = copy(loaded)
        apply(now, add(order))
        results.append(now)
    assert all(equal(result, results[0]) for result in results)
    summed = {n: loaded[n].double() + sum(dense(v, loaded)[n].double() for v in vectors) for n in loaded}
    assert all(torch.allclose(results[0][n].double(), summed[n], rtol=1e-6, atol=1e-5) for n in loaded)
    two, swapped = add(vectors[:2]), add(vectors[1::-1])
    assert all(torch.equal(two[n].index, swapped[n].index) and torch.equal(two[n].value, swapped[n].value) for n in two)
    for n in ("a", "b"):
        assert torch.equal(dense(two, loaded)[n], dense(vectors[0], loaded)[n] + dense(vectors[1], loaded)[n])


def test_a_sum_of_one_is_itself_and_of_none_is_nothing() -> None:
    vector = difference(base(), changed(base(), 1))
    assert all(torch.equal(a, b) for n in vector for a, b in zip(add([vector])[n], vector[n], strict=True))
    assert add([]) == {} and count({}) == 0


def test_several_applications_are_removed_in_the_opposite_order() -> None:
    loaded, now = base(), base()
    first, second = (difference(loaded, changed(loaded, seed)) for seed in (1, 2))
    replaced = [apply(now, first), apply(now, second)]
    for one in reversed(replaced):
        remove(now, one)
    assert equal(now, loaded)


def test_parameters_that_require_gradients_change_in_place() -> None:
    p = torch.nn.Parameter(torch.zeros(2, 2))
    apply({"a": p}, {"a": Entries(torch.tensor([3]), torch.tensor([2.0]))})
    assert p.tolist() == [[0, 0], [0, 2]] and p.requires_grad


def test_what_does_not_fit_is_refused() -> None:
    vector = {"a": Entries(torch.tensor([1, 30]), torch.ones(2))}
    with pytest.raises(ValueError, match="the vector changes entry 30 of a, which has 30"):
        apply(base(), vector)
    with pytest.raises(ValueError, match="the vector changes a, which the model has not"):
        apply({"b": torch.ones(3)}, vector)
    with pytest.raises(ValueError, match="same names and shapes"):
        difference(base(), {"a": torch.ones(3)})
