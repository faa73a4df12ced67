"""Compact forms of tensors with many zeros, and back to the last bit. Pure.

`mask`: one bit an entry says whether it is there, then the values alone. `nm`: at most n of each m consecutive entries along an axis are
there; n positions of ceil(log2 m) bits and n values a group. An entry is absent where all its bits are zero; -0.0 is no value
either, its sign is kept in one more bit a zero, where a tensor has any (a mask that is multiplied with a negative weight leaves it).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

GROUPS = (4, 8, 16)
"""Lengths m of groups that are looked for."""


@dataclass(frozen=True)
class Layout:
    """How a tensor is packed, as plain words."""

    kind: str
    """`dense`, `mask` or `nm`."""
    shape: tuple[int, ...]
    n: int = 0
    m: int = 0
    axis: int = -1
    """Along which groups lie."""


Parts = dict[str, Tensor]
"""`values`; `bits` (uint8): the mask, or the positions of `nm`; `signs` (uint8): one bit a zero, where any zero is negative."""


def pack(tensor: Tensor) -> tuple[Layout, Parts]:
    """The smallest form of a tensor."""
    return min(_forms(tensor.detach().contiguous()), key=lambda form: size(form[1]))


def unpack(layout: Layout, parts: Parts) -> Tensor:
    """The tensor, bit for bit."""
    if layout.kind == "dense":
        return parts["values"].view(layout.shape)
    there = _positions(layout, parts["bits"]) if layout.kind == "nm" else unpack_bits(parts["bits"], 1, _numel(layout)).bool()
    flat = torch.zeros(len(there), dtype=parts["values"].dtype)
    flat[there] = parts["values"]
    if "signs" in parts:
        zeros = (flat == 0).nonzero().flatten()
        flat[zeros[unpack_bits(parts["signs"], 1, len(zeros)).bool()]] = -0.0
    return flat.view(layout.shape) if layout.kind == "mask" else _from_groups(flat, layout)


def size(parts: Parts) -> int:
    """Bytes of the parts."""
    return sum(t.numel() * t.element_size() for t in parts.values())


def pack_bits(codes: Tensor, width: int) -> Tensor:
    """Integers below 2^`width` (width <= 8) as a stream of bits, lowest first, in whole bytes (uint8)."""
    bits = (codes.flatten().to(torch.uint8)[:, None] >> _places(width)) & 1
    bits = torch.nn.functional.pad(bits.flatten(), (0, -bits.numel() % 8)).view(-1, 8)
    return (bits << _places(8)).sum(1, dtype=torch.uint8)


def unpack_bits(stream: Tensor, width: int, count: int) -> Tensor:
    """The first `count` integers of `pack_bits`, uint8."""
    bits = ((stream[:, None] >> _places(8)) & 1).flatten()[: count * width]
    return (bits.view(-1, width) << _places(width)).sum(1, dtype=torch.uint8)


def _places(width: int) -> Tensor:
    return torch.arange(width, dtype=torch.uint8)


def _forms(tensor: Tensor) -> Iterator[tuple[Layout, Parts]]:
    """Dense, and the others where they may be smaller."""
    yield Layout("dense", tuple(tensor.shape)), {"values": tensor}
    there, bits = tensor != 0, 8 * tensor.element_size()
    kept = int(there.sum())
    if not tensor.is_floating_point() or (tensor.numel() - kept) * bits <= tensor.numel():
        return
    flat = tensor.flatten()
    yield Layout("mask", tuple(tensor.shape)), {"values": flat[there.flatten()], "bits": pack_bits(there, 1)} | _signs(flat)
    limit = kept * bits + tensor.numel()
    for axis in (-1, -2)[: tensor.ndim]:
        for n, m in _patterns(there, axis):
            if 0 < tensor.numel() * n * (bits + _width(m)) < limit * m:
                yield _grouped(tensor, n, m, axis)


def _patterns(there: Tensor, axis: int) -> Iterator[tuple[int, int]]:
    """The N:M with the smallest n that hold along an axis."""
    for m in GROUPS:
        if there.shape[axis] % m == 0:
            yield int(there.transpose(axis, -1).reshape(-1, m).sum(1).max()), m


def _grouped(tensor: Tensor, n: int, m: int, axis: int) -> tuple[Layout, Parts]:
    """Values and positions; a group with fewer entries is filled with its first zeros."""
    groups = tensor.transpose(axis, -1).reshape(-1, m)
    order = (groups == 0).long().argsort(dim=1, stable=True)[:, :n].sort(1).values
    parts = {"values": groups.gather(1, order).flatten(), "bits": pack_bits(order, _width(m))}
    return Layout("nm", tuple(tensor.shape), n, m, axis), parts | _signs(groups.flatten())


def _width(m: int) -> int:
    """Bits of a position in a group."""
    return (m - 1).bit_length()


def _signs(flat: Tensor) -> Parts:
    zeros = flat[flat == 0]
    return {"signs": pack_bits(zeros.signbit(), 1)} if zeros.signbit().any() else {}


def _positions(layout: Layout, bits: Tensor) -> Tensor:
    """Where the values of `nm` lie, in the order of the groups."""
    groups = _numel(layout) // layout.m
    order = unpack_bits(bits, _width(layout.m), groups * layout.n).view(groups, layout.n).long()
    return torch.zeros(groups, layout.m, dtype=torch.bool).scatter(1, order, True).flatten()


def _from_groups(flat: Tensor, layout: Layout) -> Tensor:
    shape = torch.empty(layout.shape, device="meta").transpose(layout.axis, -1).shape
    return flat.view(shape).transpose(layout.axis, -1).contiguous()


def _numel(layout: Layout) -> int:
    return torch.Size(layout.shape).numel()
