"""A linear map of which a part of the weight trains: y = x W'^T + b, where W' is W (out, in) changed at that part by `values`. Pure.

The part is some inputs (columns of W), some outputs (rows) or single entries: W' = W + s values there, or s values in the place of W.
With G = dL/dy the gradients are dL/dx = G W' and dL/dvalues = s (G^T x) at the part, of which only that part is computed for columns
and rows: G^T x[..., columns] and G[..., rows]^T x. For the backward pass x[..., columns] is kept for columns and x for the others (that
of entries comes from the whole G^T x, which lives until it is gathered); W' is made anew, since keeping it would cost a matrix per map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import linear


@dataclass(frozen=True, eq=False)
class Part:
    """Which entries of a weight (out, in) train, and what `values` mean there."""

    where: Tensor | slice
    """Indices without repetition, or a range of them."""
    adds: bool
    """True: W + s values; False: s values in the place of W."""
    scale: float = 1.0
    """s."""

    def of(self, weight: Tensor) -> Tensor:
        """The part of a weight, in the shape of `values`."""
        raise NotImplementedError

    def changed(self, weight: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
        """W' (out, in), contiguous. The part is computed in the dtype of `values` and rounded once."""
        whole = torch.empty(weight.shape, dtype=dtype, device=weight.device).copy_(weight)
        part = self.scale * values
        self._put(whole, (self.of(weight) + part if self.adds else part).to(dtype))
        return whole

    def kept(self, x: Tensor) -> Tensor:
        """What of x (..., in) the gradient needs, in memory that keeps nothing else alive."""
        raise NotImplementedError

    def gradient(self, slope: Tensor, kept: Tensor) -> Tensor:
        """(G^T x) at the part, in the shape of `values`; G (n, out), `kept` of x (n, in)."""
        raise NotImplementedError

    def _put(self, whole: Tensor, part: Tensor) -> None:
        raise NotImplementedError


class Columns(Part):
    """Inputs: `values` is (out, r)."""

    def of(self, weight: Tensor) -> Tensor:
        """W[:, where]."""
        return weight[:, self.where]

    def kept(self, x: Tensor) -> Tensor:
        """A copy of x[..., where]: a view would keep the whole x."""
        part = x[..., self.where]
        return part.clone() if isinstance(self.where, slice) else part

    def gradient(self, slope: Tensor, kept: Tensor) -> Tensor:
        """G^T x[..., where]."""
        return slope.mT @ kept

    def _put(self, whole: Tensor, part: Tensor) -> None:
        whole[:, self.where] = part


class Rows(Part):
    """Outputs: `values` is (r, in)."""

    def of(self, weight: Tensor) -> Tensor:
        """W[where]."""
        return weight[self.where]

    def kept(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def gradient(self, slope: Tensor, kept: Tensor) -> Tensor:
        """G[..., where]^T x."""
        return slope[:, self.where].mT @ kept

    def _put(self, whole: Tensor, part: Tensor) -> None:
        whole[self.where] = part


@dataclass(frozen=True, eq=False)
class Entries(Part):
    """Single entries: `where` are flat positions in W (out, in), `values` is (K,)."""

    watch: Callable[[Tensor], None] | None = None
    """Is shown every G^T x (out, in) of the backward pass."""

    def of(self, weight: Tensor) -> Tensor:
        """W at the positions; W may have any strides."""
        return weight.take(self.where.long())

    def kept(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def gradient(self, slope: Tensor, kept: Tensor) -> Tensor:
        """G^T x at the positions."""
        dense = slope.mT @ kept
        if self.watch is not None:
            self.watch(dense)
        return dense.flatten().index_select(0, self.where)

    def _put(self, whole: Tensor, part: Tensor) -> None:
        whole.view(-1).index_copy_(0, self.where.long(), part)


def partial_linear(x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, part: Part) -> Tensor:
    """x (..., in) -> x W'^T + b (..., out) in the dtype of x, which `bias` has too.

    Gradients reach x and `values`, never `weight` and `bias`.
    """
    return _Partial.apply(x, weight, bias, values, part)


class _Partial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, part: Part) -> Tensor:
        ctx.part = part
        ctx.save_for_backward(part.kept(x) if ctx.needs_input_grad[3] else None, weight, values)
        return linear(x, part.changed(weight, values, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, values = ctx.saved_tensors
        into = slope @ ctx.part.changed(weight, values, slope.dtype) if ctx.needs_input_grad[0] else None
        own = None
        if ctx.needs_input_grad[3]:
            own = ctx.part.gradient(slope.flatten(0, -2), kept.flatten(0, -2)).to(values.dtype) * ctx.part.scale
        return into, None, None, own, None
