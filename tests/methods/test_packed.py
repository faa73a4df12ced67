"""Packed tensors: back bit for bit in every form, the smallest form is taken, sizes by hand."""

import pytest
import torch
from torch import Tensor

from methods.maths.masks import nm_mask
from methods.maths.packed import Layout, pack, pack_bits, size, unpack, unpack_bits


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def equal_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def pruned(shape: tuple[int, ...], sparsity: float, dtype: torch.dtype = torch.float32, negative: bool = False) -> Tensor:
    tensor = randn(*shape, dtype=dtype)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) >= sparsity
    return tensor * mask if negative else torch.where(mask, tensor, 0)


@pytest.mark.parametrize("width", range(1, 9))
def test_bits_come_back(width: int) -> None:
    codes = torch.randint(0, 2**width, (37,), generator=torch.Generator().manual_seed(0))
    stream = pack_bits(codes, width)
    assert len(stream) == -(-37 * width // 8)
    assert torch.equal(unpack_bits(stream, width, 37).long(), codes)
    whole = sum(int(code) << (width * i) for i, code in enumerate(codes))
    assert bytes(stream.tolist()) == whole.to_bytes(len(stream), "little")


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7, 13), (16, 32), (3, 8, 16), (31,), (1, 1)])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_every_tensor_comes_back_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype, sparsity: float, negative: bool) -> None:
    tensor = pruned(shape, sparsity, dtype, negative)
    layout, parts = pack(tensor)
    assert equal_bits(unpack(layout, parts), tensor)
    assert size(parts) <= tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (2, 8), (4, 8), (1, 8), (1, 16)])
def test_patterns_are_found_along_either_axis(n: int, m: int, transposed: bool) -> None:
    weight = randn(32, 48)
    weight = torch.where(nm_mask(weight.abs(), n, m), weight, 0)
    tensor = weight.T.contiguous() if transposed else weight
    layout, parts = pack(tensor)
    assert equal_bits(unpack(layout, parts), tensor)
    width = {4: 2, 8: 3, 16: 4}[m]
    mask, grouped = 32 * 48 / 8, 32 * 48 * n / m * width / 8
    assert size(parts) == 32 * 48 * n // m * 4 + min(mask, grouped)
    assert layout == (Layout("nm", tuple(tensor.shape), n, m, -2 if transposed else -1) if grouped < mask else Layout("mask", tensor.shape))


def test_groups_with_fewer_entries_are_filled() -> None:
    weight = torch.zeros(16, 16)
    weight[:, ::4] = 3.0
    weight[7, 0], weight[0, 0], weight[5, 4] = torch.nan, -0.0, 0.0
    layout, parts = pack(weight)
    assert (layout.kind, layout.n, layout.m) == ("nm", 1, 4) and equal_bits(unpack(layout, parts), weight)


def test_half_zeros_take_half_the_values_and_a_bit_each() -> None:
    tensor = pruned((64, 64), 0.5)
    kept = int((tensor != 0).sum())
    layout, parts = pack(tensor)
    assert (layout.kind, size(parts)) == ("mask", 4 * kept + 64 * 64 // 8)
    signed = pruned((64, 64), 0.5, negative=True)
    assert size(pack(signed)[1]) == 4 * kept + 64 * 64 // 8 + -(-(64 * 64 - kept) // 8)


def test_few_zeros_and_integers_stay_dense() -> None:
    few = randn(64, 64)
    few[0] = 0  # 1 of 64 entries saves less than a bit each
    counts = torch.zeros(8, 8, dtype=torch.int64)
    assert [pack(t)[0].kind for t in (few, counts, torch.empty(0, 4))] == ["dense"] * 3
    assert all(equal_bits(unpack(*pack(t)), t) for t in (few, counts, torch.empty(0, 4)))
