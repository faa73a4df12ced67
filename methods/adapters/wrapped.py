"""The contract of own adapters: a linear map that is wrapped, computes with its adapter and folds back into a stock module.

`forward(x)` and `folded() = (W', b')` agree: forward(x) = x W'^T + b' in eval mode. Weights are spoken of as (out, in) whatever the
module keeps (Conv1D is transposed). Trainable parameters are float32, as PEFT keeps them, also over a half-precision base.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from methods.roles import weight_is_transposed


class WrappedLinear(nn.Module):
    """An nn.Linear, a Conv1D or another `WrappedLinear` (then adapters stack), frozen, under an adapter."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.out_features, self.in_features = map_shape(base)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        raise NotImplementedError

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """(W' (out, in), b' (out) or None), float32, without gradients."""
        raise NotImplementedError

    @torch.no_grad()
    def unwrapped(self) -> nn.Module:
        """The stock module with the folded weight, rounded once to its own dtype; its parameters are new, so ties are cut."""
        weight, bias = self.folded()
        stock = self.stock()
        kept = weight.mT if weight_is_transposed(stock) else weight
        stock.weight = nn.Parameter(kept.to(stock.weight.dtype).contiguous().clone())
        if bias is not None:
            stock.bias = nn.Parameter(bias.to(stock.weight.dtype).clone())
        return stock

    def stock(self) -> nn.Module:
        """The innermost module."""
        return self.base_layer.stock() if isinstance(self.base_layer, WrappedLinear) else self.base_layer

    @property
    def device(self) -> torch.device:
        """Where the base weight lies; new parameters belong there."""
        return self.stock().weight.device


class LowRankLinear(WrappedLinear):
    """y = W x + b + C_k ... C_1 dropout(x): a chain of small maps beside the base, never multiplied out in `forward`."""

    def __init__(self, base: nn.Module, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def chain(self) -> Sequence[Tensor]:
        """C_1, ..., C_k: matrices (n_i, n_{i-1}), or vectors for diagonal maps and scalars for scales, from the input on."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = self.base_layer(x)
        return y + self.delta(self.dropout(x)).to(y.dtype)

    def delta(self, x: Tensor) -> Tensor:
        """C_k ... C_1 x, (..., in) -> (..., out), in the dtype of the chain."""
        chain = self.chain()
        return reduce(_apply, chain, x.to(chain[0].dtype))

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor]:
        """(B (out, r), A (r, in)) with B A = C_k ... C_1, float32; r is the smallest width inside the chain."""
        steps = [step.float() for step in self.chain()]
        last = max(i for i, step in enumerate(steps) if step.ndim == 2)
        inner = [(step.shape[0], i) for i, step in enumerate(steps[:last]) if step.ndim == 2]
        cut = min(inner)[1] + 1
        rank = steps[cut - 1].shape[0]
        return reduce(_times, steps[cut:], torch.eye(rank, device=self.device)), reduce(_times, steps[1:cut], steps[0])

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """(W + B A, b)."""
        weight, bias = weight_and_bias(self.base_layer)
        up, down = self.factors()
        return weight + up @ down, bias


def map_shape(base: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear map or a wrapper."""
    if isinstance(base, WrappedLinear):
        return base.out_features, base.in_features
    shape = base.weight.shape
    return (shape[1], shape[0]) if weight_is_transposed(base) else (shape[0], shape[1])


@torch.no_grad()
def weight_and_bias(base: nn.Module) -> tuple[Tensor, Tensor | None]:
    """(W (out, in), b or None) of a linear map or a wrapper, float32."""
    if isinstance(base, WrappedLinear):
        return base.folded()
    weight = base.weight.mT if weight_is_transposed(base) else base.weight
    return weight.float(), None if base.bias is None else base.bias.float()


def _apply(h: Tensor, step: Tensor) -> Tensor:
    return linear(h, step) if step.ndim == 2 else h * step


def _times(product: Tensor, step: Tensor) -> Tensor:
    """C_i times the product of those before it."""
    if product.ndim < 2:
        return step * product
    return step @ product if step.ndim == 2 else (step.unsqueeze(-1) if step.ndim else step) * product
