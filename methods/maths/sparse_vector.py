"""Sparse difference vectors phi = theta - theta_0 and their sums (Ansell et al. 2022, arXiv 2110.07560, Section 3). Pure.

theta_0 + phi_a + phi_b composes two of them; addition does not depend on the order, bit for bit. Values are float32: theta_0 + phi
is theta up to the rounding of that difference, 2^-24 of it (nothing where theta and theta_0 lie within a factor of 2 of each other).
`apply` returns what it replaced, and `remove` puts that back, so that the base returns bit for bit; subtracting would leave residue.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Entries(NamedTuple):
    """The entries of one tensor."""

    index: Tensor
    """Flat positions (k,), int64, ascending, each once."""
    value: Tensor
    """(k,), float32."""


SparseVector = dict[str, Entries]
"""Entries by tensor name; a tensor that does not differ is absent."""


@torch.no_grad()
def difference(base: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> SparseVector:
    """phi with base + phi = other, at every entry that differs.

    Raises:
        ValueError: the two have not the same names and shapes.
    """
    if {name: t.shape for name, t in base.items()} != {name: t.shape for name, t in other.items()}:
        raise ValueError("a difference needs tensors of the same names and shapes")
    found: SparseVector = {}
    for name, tensor in base.items():
        old, new = tensor.flatten(), other[name].flatten()
        index = (old != new).nonzero().flatten()
        if len(index):
            found[name] = Entries(index, new[index].float() - old[index].float())
    return found


@torch.no_grad()
def add(vectors: Iterable[SparseVector]) -> SparseVector:
    """The sum of any number of vectors; at each position values are summed in the order of their size, so the vectors have none."""
    by_name: dict[str, list[Entries]] = {}
    for vector in vectors:
        for name, entries in vector.items():
            by_name.setdefault(name, []).append(entries)
    return {name: _add(entries) for name, entries in sorted(by_name.items())}


def count(vector: SparseVector) -> int:
    """Number of stored entries."""
    return sum(len(index) for index, _ in vector.values())


@torch.no_grad()
def apply(tensors: Mapping[str, Tensor], vector: SparseVector) -> SparseVector:
    """theta <- theta + phi in place, rounded once to the dtype of theta; returns the replaced values (in that dtype) for `remove`.

    Tensors must be contiguous.

    Raises:
        ValueError: a tensor is absent, or too small for a position.
    """
    check(tensors, vector)
    replaced: SparseVector = {}
    for name, (index, value) in vector.items():
        flat = tensors[name].detach().view(-1)
        index = index.to(flat.device)
        old = flat.index_select(0, index)
        flat.index_copy_(0, index, (old.float() + value.to(flat.device)).to(flat.dtype))
        replaced[name] = Entries(index, old)
    return replaced


@torch.no_grad()
def remove(tensors: Mapping[str, Tensor], replaced: SparseVector) -> None:
    """Put back, in place, what `apply` replaced. Several applications are removed in the opposite order."""
    check(tensors, replaced)
    for name, (index, old) in replaced.items():
        tensors[name].detach().view(-1).index_copy_(0, index, old)


def check(tensors: Mapping[str, Tensor], vector: SparseVector) -> None:
    """`ValueError` unless every position of the vector lies in a tensor."""
    for name, (index, _) in vector.items():
        if name not in tensors:
            raise ValueError(f"the vector changes {name}, which the model has not")
        if int(index[-1]) >= tensors[name].numel():
            raise ValueError(f"the vector changes entry {int(index[-1])} of {name}, which has {tensors[name].numel()}")


def _add(entries: list[Entries]) -> Entries:
    index, place = torch.cat([e.index for e in entries]).unique(return_inverse=True)
    values = torch.zeros(len(entries), len(index), dtype=torch.float64)
    for row, part, old in zip(values, place.split([len(e.index) for e in entries]), entries, strict=True):
        row[part] = old.value.double()
    return Entries(index, values.sort(0).values.sum(0).float())
