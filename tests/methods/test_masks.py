"""Masks against brute force (ties included), against torch.nn.utils.prune (without ties), and their exact counts."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from methods.maths.masks import global_masks, kept, kth_largest, layer_mask, nm_mask, row_mask, topk_mask

SPARSITIES = (0.0, 0.1, 0.5, 0.53, 0.9, 0.999)


def best(values: list[float], keep: int) -> list[bool]:
    """Sort by (score descending, index ascending) and keep the first."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:keep]
    return [i in set(order) for i in range(len(values))]


def grid(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scores on five levels, two of them negative: ties everywhere."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("keep", [0, 1, 4, 6, 7])
def test_topk_equals_brute_force_with_ties(keep: int, dtype: torch.dtype) -> None:
    scores = grid(5, 7, dtype=dtype)
    before = scores.clone()
    assert topk_mask(scores, keep).tolist() == [best(row, keep) for row in scores.tolist()]
    assert torch.equal(scores, before)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_scopes_equal_brute_force_with_ties(sparsity: float) -> None:
    scores = {"a": grid(6, 10, seed=1), "b": grid(3, 4, 5, seed=2), "c": grid(1, 2, seed=3)}
    for score in scores.values():
        rows, matrices = score.reshape(-1, score.shape[-1]), score.reshape(-1, score.shape[-1] * score.shape[-2])
        by_row = [best(r.tolist(), len(r) - round(sparsity * len(r))) for r in rows]
        by_matrix = [best(m.tolist(), len(m) - round(sparsity * len(m))) for m in matrices]
        assert row_mask(score, sparsity).reshape(rows.shape).tolist() == by_row
        assert layer_mask(score, sparsity).reshape(matrices.shape).tolist() == by_matrix
    everything = torch.cat([s.flatten() for s in scores.values()]).tolist()
    masks = global_masks(scores, sparsity)
    assert {n: m.shape for n, m in masks.items()} == {n: s.shape for n, s in scores.items()}
    flat = torch.cat([masks[name].flatten() for name in scores]).tolist()
    assert flat == best(everything, len(everything) - round(sparsity * len(everything)))


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_layer_equals_torch_l1_unstructured(sparsity: float) -> None:
    layer = nn.Linear(37, 23)
    expected = layer_mask(layer.weight.detach().abs(), sparsity)
    prune.l1_unstructured(layer, "weight", amount=sparsity)
    assert torch.equal(layer.weight_mask.bool(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_global_equals_torch_global_unstructured(sparsity: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(19, 8, dtype=dtype), "b": nn.Linear(8, 31, dtype=dtype), "c": nn.Linear(31, 3, dtype=dtype)}
    expected = global_masks({name: layer.weight.detach().abs() for name, layer in layers.items()}, sparsity)
    prune.global_unstructured([(layer, "weight") for layer in layers.values()], prune.L1Unstructured, amount=sparsity)
    for name, layer in layers.items():
        assert torch.equal(layer.weight_mask.bool(), expected[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4), (3, 5)])
def test_nm_equals_brute_force(n: int, m: int, dtype: torch.dtype) -> None:
    scores = grid(3, 6, 2 * m, seed=n, dtype=dtype)
    groups = scores.reshape(-1, m)
    mask = nm_mask(scores, n, m).reshape(-1, m)
    assert mask.tolist() == [best(group, n) for group in groups.tolist()]
    assert (mask.sum(-1) == n).all()


@pytest.mark.parametrize("mask", [lambda s: row_mask(s, 0.5), lambda s: layer_mask(s, 0.3), lambda s: nm_mask(s, 2, 4)])
def test_memory_layout_does_not_matter(mask: Callable[[Tensor], Tensor]) -> None:
    scores = grid(8, 12).mT.contiguous().mT
    assert not scores.is_contiguous()
    assert torch.equal(mask(scores), mask(scores.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_kth_largest_equals_sorting(dtype: torch.dtype) -> None:
    values = torch.tensor([math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-40, 3.0, 3.0, -3.0, 1e30, 1.0000001], dtype=dtype)
    ordered = values.sort(descending=True).values.tolist()
    assert [kth_largest([values[:4], values[4:]], k + 1) for k in range(len(values))] == ordered


def test_counts_are_exact_on_a_coarse_grid() -> None:
    """16 levels on 200,000 weights: a threshold alone would miss the count by thousands."""
    scores = torch.randint(-8, 8, (400, 500), generator=torch.Generator().manual_seed(0)).float().abs()
    assert int(layer_mask(scores, 0.5).sum()) == 100_000
    assert (row_mask(scores, 0.3).sum(-1) == 350).all()
    assert sum(int(m.sum()) for m in global_masks({"a": scores, "b": scores[:7]}, 0.9).values()) == kept(203_500, 0.9) == 20_350


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: topk_mask(s, 8), "keep=8 is outside"),
        (lambda s: topk_mask(s, -1), "keep=-1 is outside"),
        (lambda s: nm_mask(s, 2, 4), "7 is not divisible by 4"),
        (lambda s: layer_mask(s / 0 * 0, 0.5), "NaN score"),
        (lambda s: global_masks({"a": s, "b": s / 0 * 0}, 0.5), "NaN score"),
    ],
)
def test_refusals(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.ones(5, 7))
