"""Linear maps of which a part of the weight trains in place, for the techniques that choose rows, columns or entries.

The base weight stays as loaded; `values` (float32) meet it in every forward pass, so that no copy of W can be stale, and what autograd
keeps is no more than `methods.maths.partial` says.
"""

import torch
from torch import Tensor, nn

from methods.adapters.wrapped import WrappedLinear
from methods.maths.partial import Columns, Part, Rows, partial_linear
from methods.roles import weight_is_transposed


class PartialLinear(WrappedLinear):
    """y = x W'^T + b with `values` at one part of W; a subclass says at which."""

    values: nn.Parameter

    def part(self) -> Part:
        """Where `values` belong, and how they enter."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype that autocast asks for, else in that of the base."""
        weight, bias = self.base()
        dtype = _compute_dtype(x.device.type) or weight.dtype
        return partial_linear(x.to(dtype), weight, None if bias is None else bias.to(dtype), self.values, self.part())

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """(W', b)."""
        weight, bias = self.base()
        return self.part().changed(weight, self.values, torch.float32), None if bias is None else bias.float()

    def base(self) -> tuple[Tensor, Tensor | None]:
        """(W (out, in), b or None) beneath, views in their own dtype; a wrapper beneath is folded."""
        if isinstance(self.base_layer, WrappedLinear):
            return self.base_layer.folded()
        weight = self.base_layer.weight.detach()
        return weight.mT if weight_is_transposed(self.base_layer) else weight, self.base_layer.bias


class SlicedLinear(PartialLinear):
    """Whole columns (axis 1) or rows (axis 0) train."""

    def __init__(self, base: nn.Module, index: Tensor, axis: int, *, adds: bool, scale: float = 1.0) -> None:
        """`index` (r,) without repetition. `adds`: values start at 0 and are added; else they start at W / scale and replace it."""
        super().__init__(base)
        self.kind, self.adds, self.scale = (Rows, Columns)[axis], adds, scale
        self.register_buffer("index", index.to(self.device))
        self.span: slice | None = None
        """Where these rows or columns lie while the base weight is permuted so that they are neighbours, in the order of `index`."""
        slab = self.part().of(self.base()[0]).float()
        self.values = nn.Parameter(torch.zeros_like(slab) if adds else slab / scale)

    def part(self) -> Part:
        """The columns or rows."""
        return self.kind(self.index if self.span is None else self.span, self.adds, self.scale)


def _compute_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
