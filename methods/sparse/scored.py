"""Base of the techniques whose masks follow from scores in every forward pass while a schedule raises the sparsity.

y = x (M * W')^T + b with M = 0 for the int(s n k) smallest scores of each matrix; a subclass says what W' and the scores S are. All linear
maps of the blocks take part; q, k and v of a fused map are three matrices, each with its own count. Embeddings, norms, heads and the
pooler are never pruned. The mask is used in training and evaluation alike; `finalize` leaves M * W' in a stock model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.own_base import fold, insert, wrapped
from methods.adapters.peft_base import split_groups
from methods.adapters.wrapped import WrappedLinear, weight_and_bias
from methods.base import Context, Method, TrainSettings
from methods.fused import fused_rows
from methods.maths.rows import Rows
from methods.maths.schedules import cubic, settled
from methods.maths.straight_through import MaskedLinear, lowest_mask
from methods.roles import embeddings, prunable, weight_is_transposed

MARK = "mask_"
"""What the names of parameters begin with that only the scores depend on."""


@dataclass
class Level:
    """Where the schedule stands; one for all layers."""

    value: float
    """The sparsity now (fraction pruned), or what a subclass raises instead of it."""


class ScoredLinear(WrappedLinear):
    """A linear map whose weight is masked by scores."""

    def __init__(self, base: nn.Module, level: Level, rows: Rows) -> None:
        super().__init__(base)
        self.level, self.rows = level, rows

    def mask(self) -> Tensor:
        """M (out, in), bool."""
        raise NotImplementedError


class FullLinear(ScoredLinear):
    """W itself trains. S is a matrix of W's size that trains too (movement), or |W| (magnitude).

    For |W|, `attached`: is S a function of W in the backward pass, so that dL/dW = G * M + G * |W|? Otherwise dL/dW = G * M. Pruned
    entries keep the value that they had, so they may come back.
    """

    def __init__(self, base: nn.Module, level: Level, rows: Rows, start: float | None, attached: bool = False) -> None:
        """`start`: the value of all S at first; None = S is |W|."""
        super().__init__(base, level, rows)
        base.requires_grad_(True)
        self.attached = attached
        shape = (self.out_features, self.in_features)
        self.mask_scores = None if start is None else nn.Parameter(torch.full(shape, start, device=self.device))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        stock = self.stock()
        weight = stock.weight.mT if weight_is_transposed(stock) else stock.weight
        return MaskedLinear.apply(x, weight, stock.bias, self.mask_scores, self.mask(), self.attached)

    @torch.no_grad()
    def mask(self) -> Tensor:
        """M (out, in), bool."""
        return self.rows.join(self.kept(self.rows.split(self.scores())))

    def scores(self) -> Tensor:
        """S (out, in), float32."""
        return weight_and_bias(self.base_layer)[0].abs() if self.mask_scores is None else self.mask_scores

    def kept(self, scores: Tensor) -> Tensor:
        """The mask of scores (..., n, k)."""
        return lowest_mask(scores, self.level.value)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """(M * W, b)."""
        weight, bias = weight_and_bias(self.base_layer)
        return weight * self.mask(), bias


class ScoredMethod(Method):
    """Wraps the linear maps of the blocks and moves the schedule; a subclass gives `layer`, `span` and, where it is not s, `at`.

    `config` holds `sparsity`, `initial_sparsity` and `score_lr` (null = the recipe's).
    """

    def layer(self, base: nn.Module, name: str, rows: Rows, ctx: Context) -> ScoredLinear:
        """The wrapper of one map; `name` is its full name, for `ctx.generator`."""
        raise NotImplementedError

    def span(self, steps: int) -> tuple[float, float]:
        """(t_i, t_f): updates before the ramp and after it, of `steps`."""
        raise NotImplementedError

    def freeze(self, model: nn.Module) -> None:
        """Say what of the stock model trains, before anything is wrapped; default: all but the embeddings (and what is tied to them)."""
        model.requires_grad_(True)
        for table in embeddings(model).values():
            table.requires_grad_(False)

    def first(self) -> float:
        """What `Level` is before the ramp."""
        return self.config.initial_sparsity

    def last(self) -> float:
        """What `Level` is after the ramp."""
        return self.config.sparsity

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Wrap every linear map of the blocks, in layer order."""
        self.freeze(model)
        self.level, fused = Level(self.first()), fused_rows(model)
        insert(model, {name: self.layer(base, name, fused.get(name, Rows()), ctx) for name, base in prunable(model).items()})
        return model

    def groups(self, model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
        """Scores apart: their own learning rate, no weight decay."""
        lr = settings.lr if self.config.score_lr is None else self.config.score_lr
        return split_groups(model, super().groups(model, settings), f".{MARK}", lr=lr, weight_decay=0.0)

    def on_step(self, model: nn.Module, step: int, ctx: Context) -> None:
        """Where the schedule stands follows from the step alone, also after a resume."""
        self.level.value = self.at(step, ctx.total_steps)

    def on_update(self, model: nn.Module, step: int, ctx: Context) -> None:
        """The next forward pass, be it an evaluation, has the next sparsity."""
        self.level.value = self.at(step, ctx.total_steps)

    def at(self, step: int, steps: int) -> float:
        """`Level` after `step` of `steps` updates."""
        return cubic(step, steps, *self.span(steps), self.first(), self.last())

    def eligible(self, step: int, ctx: Context) -> bool:
        """Only at the final sparsity."""
        return settled(step, ctx.total_steps, self.span(ctx.total_steps)[1])

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The stock model with exact zeros; all its parameters require gradients again."""
        fold(model)
        return model.requires_grad_(True)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Share of zeros over all prunable weights and per parameter, before export."""
        layers = scored(model)
        zeros = {f"{name}.weight": int((layer.folded()[0] == 0).sum()) for name, layer in layers.items()}
        sizes = {f"{name}.weight": layer.out_features * layer.in_features for name, layer in layers.items()}
        return {
            "sparsity": sum(zeros.values()) / sum(sizes.values()),
            "sparsity_by_parameter": {name: zeros[name] / size for name, size in sizes.items()},
            "prunable": sum(sizes.values()),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Where the schedule stands: a finished phase is restored without a step."""
        return {"level": torch.tensor(self.level.value, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take it back."""
        self.level.value = state["level"].item()


def scored(model: nn.Module) -> dict[str, ScoredLinear]:
    """The layers under scores by full name."""
    return {name: layer for name, layer in wrapped(model).items() if isinstance(layer, ScoredLinear)}
