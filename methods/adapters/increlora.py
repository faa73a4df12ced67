"""IncreLoRA (Zhang et al. 2023, arXiv 2308.12043, Sections 3.2-3.4): dW = alpha / (k + 1e-5) B diag(E) A; the rank k of a map grows.

Every step S = sum |dW * dL/d(dW)| / sqrt(m n), I <- b1 I + (1 - b1) S, U <- b2 U + (1 - b2) |S - I|; every `interval` updates the
`top` maps with the largest I U get `add` ranks more, until the ranks of all maps together reach `target` times their number.
With `advance` each map holds `add` ranks in reserve, whose A and B train under a fixed E = 1e-5, so that they point somewhere when
they are chosen; when the target is reached the reserve's E is 0. Loss: + gamma / (2 maps) sum (|A A^T - I|_F + |B^T B - I|_F),
reserve included. alpha / k shrinks the present ranks when k grows, as in the authors' code.

Where this differs from the authors' code: dL/d(dW) = (dL/dy)^T x is collected in the backward pass (an (m, n) matrix per map for the
time of a step) instead of from a dW that every forward pass makes, and it is that of the whole batch, where theirs is that of the last
micro-batch; never more than `top` maps are chosen, the first ones where I U ties; no round exceeds the target, so up to add - 1 ranks may
stay unused; E, a vector, carries no weight decay; `init_warmup` and `interval` may be left to the length of the training.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.own_base import AdapterMethod, wrapped
from methods.adapters.wrapped import LowRankLinear
from methods.base import Batch, Context
from methods.maths.draws import normal
from methods.spec import Traits, linear_roles, number

STD = 0.02
"""Of the initial A and B."""
RESERVED = 1e-5
"""E of the ranks in reserve."""
FIRST, LAST = 0.02, 0.4
"""Shares of the steps between which ranks grow where the configuration leaves it open: about those of the authors' GLUE runs."""


class IncreLora(AdapterMethod):
    """Ranks that grow where dW is both important and uncertain; m + n + 1 parameters a rank."""

    @dataclass
    class Config:
        """`r`: ranks at the start. `target`: mean rank at the end. `top`: maps per round. `add`: ranks per chosen map.

        `init_warmup`: updates before the first growth, `interval`: updates between two; null = such that all growth lies between 2 %
        and 40 % of the steps. `gamma`: of the orthogonality loss. `restart`: new ranks get the recipe's warmup from their birth on.
        """

        r: int
        target: int
        top: int
        add: int
        init_warmup: int | None
        interval: int | None
        alpha: float
        beta1: float
        beta2: float
        gamma: float
        advance: bool
        restart: bool
        dropout: float
        targets: list[str]

        def __post_init__(self) -> None:
            for key in ("r", "top", "add"):
                number(f"method.{key}", getattr(self, key), 1)
            number("method.target", self.target, self.r)
            for key, low in (("init_warmup", 0), ("interval", 1)):
                if getattr(self, key) is not None:
                    number(f"method.{key}", getattr(self, key), low)
            number("method.alpha", self.alpha, 0, open_low=True)
            number("method.beta1", self.beta1, 0, 1, open_high=True)
            number("method.beta2", self.beta2, 0, 1, open_high=True)
            number("method.gamma", self.gamma, 0)
            number("method.dropout", self.dropout, 0, 1, open_high=True)
            linear_roles("method.targets", self.targets)

        def adjust(self, traits: Traits) -> Traits:
            """Attention-only targets work on mixtures of experts too."""
            return replace(traits, moe=not {"gate", "up", "down"} & set(self.targets))

    traits = Traits(randomness=("init",), exports_lora=True, distributed=())

    def wrap(self, base: nn.Module, name: str, ctx: Context) -> "IncreLinear":
        """`r` ranks with E = 0, and the reserve."""
        c = self.config
        draws = lambda index: ctx.generator(f"{name}.{index}")  # noqa: E731
        return IncreLinear(base, c.r, c.add, c.alpha, c.advance, c.dropout, draws)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Wrap the targets; none of them has been important yet."""
        model = super().prepare(model, ctx)
        self.layers = {name: layer for name, layer in wrapped(model).items() if isinstance(layer, IncreLinear)}
        self.importance = torch.zeros(2, len(self.layers))
        self._note_growing()
        return model

    def loss(self, model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
        """The task's loss and gamma times the mean distance of A and B^T from orthonormal rows."""
        loss = super().loss(model, batch, ctx)
        if not self.config.gamma:
            return loss
        with torch.autocast(loss.device.type, enabled=False):
            return loss + self.config.gamma * sum(layer.distance() for layer in self.layers.values()) / (2 * len(self.layers))

    def on_step(self, model: nn.Module, step: int, ctx: Context) -> None:
        """Forget dL/d(dW) of other steps."""
        for layer in self.layers.values():
            layer.gradient = None

    def on_gradients(self, model: nn.Module, step: int, ctx: Context) -> None:
        """S of every map into I and U, as long as ranks may grow."""
        if not self.growing():
            return
        b1, b2 = self.config.beta1, self.config.beta2
        scores = torch.stack([layer.score() for layer in self.layers.values()]).cpu()
        mean, spread = self.importance
        mean.mul_(b1).add_((1 - b1) * scores)
        spread.mul_(b2).add_((1 - b2) * (scores - mean).abs())

    def on_update(self, model: nn.Module, step: int, ctx: Context) -> None:
        """Grow the most important maps, and let the optimizer know what is new."""
        if not (self.growing() and self.grows_after(step, ctx.total_steps)):
            return
        layers = list(self.layers.values())
        count = min(self.config.top, (self.limit - self.total) // self.config.add)
        order = self.importance.prod(0).argsort(descending=True, stable=True)
        new = [parameter for index in order[:count].tolist() for parameter in layers[index].grow()]
        vectors, matrices = layers[0].e[0], layers[0].a[0]
        for like in (vectors, matrices):
            ctx.add_parameters([p for p in new if p.ndim == like.ndim], like, restart=self.config.restart)
        self._note_growing()

    @property
    def total(self) -> int:
        """The ranks of all maps together, without reserves."""
        return sum(layer.rank for layer in self.layers.values())

    @property
    def limit(self) -> int:
        """What `total` may become."""
        return self.config.target * len(self.layers)

    def growing(self) -> bool:
        """Is there room for another growth?"""
        return self.limit - self.total >= self.config.add

    def grows_after(self, step: int, steps: int) -> bool:
        """Is update number `step` of `steps` one that a round of growth follows?"""
        c, maps = self.config, len(self.layers)
        rounds = math.ceil((c.target - c.r) * maps / (min(c.top, maps) * c.add))
        start = round(FIRST * steps) if c.init_warmup is None else c.init_warmup
        interval = c.interval or max(1, int((LAST - FIRST) * steps / rounds))
        return step > start and step % interval == 0

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Final rank of every map, their sum, the sum that was aimed at, and how many parameters the ranks hold."""
        held = sum(layer.rank * (layer.in_features + layer.out_features + 1) for layer in self.layers.values())
        ranks = {name: layer.rank for name, layer in self.layers.items()}
        return {"ranks": ranks, "total_rank": self.total, "target_rank": self.limit, "rank_parameters": held}

    def state_dict(self) -> dict[str, Tensor]:
        """I and U (2, maps), and how often each map grew (maps,)."""
        return {"importance": self.importance, "growths": torch.tensor([len(layer.e) - 1 for layer in self.layers.values()])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Give every map the shapes of the state; their values come back by themselves."""
        self.importance = state["importance"].clone()
        for layer, growths in zip(self.layers.values(), state["growths"].tolist(), strict=True):
            layer.resize(growths)
        self._note_growing()

    def _note_growing(self) -> None:
        for layer in self.layers.values():
            layer.growing = self.growing()


class IncreLinear(LowRankLinear):
    """Blocks of ranks: `r` at first, `add` more at each growth, and with `advance` a last one in reserve."""

    def __init__(
        self, base: nn.Module, r: int, add: int, alpha: float, advance: bool, dropout: float, draws: Callable[[int], torch.Generator]
    ) -> None:
        """`draws` gives the generator of a block by its number."""
        super().__init__(base, dropout)
        self.add, self.alpha, self.advance, self.draws = add, alpha, advance, draws
        self.a, self.b, self.e = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        self.growing = True
        """While True the reserve takes part and dL/d(dW) is collected."""
        self.gradient: Tensor | None = None
        """dL/d(dW), (out, in), summed over the micro-batches of this step."""
        self._append(r)
        self._activate(r, 0.0)
        if advance:
            self._append(add)

    @property
    def rank(self) -> int:
        """k: the ranks that count."""
        return sum(len(block) for block in self.e)

    def chain(self) -> Sequence[Tensor]:
        """A (K, in), alpha / k E (K,), B (out, K); K holds the reserve while ranks may still grow."""
        gates = list(self.e)
        if self.advance and self.growing:
            gates.append(torch.full((self.add,), RESERVED, device=self.device))
        scaled = torch.cat(gates) * (self.alpha / (self.rank + 1e-5))
        return torch.cat([*self.a][: len(gates)]), scaled, torch.cat([*self.b][: len(gates)], dim=1)

    def delta(self, x: Tensor) -> Tensor:
        """dW x; its backward pass leaves dL/d(dW) in `gradient`."""
        y = super().delta(x)
        if self.growing and y.requires_grad:
            y.register_hook(partial(self._observe, x.detach()))
        return y

    @torch.no_grad()
    def score(self) -> Tensor:
        """S = sum |dW * dL/d(dW)| / sqrt(out in), a scalar; dW with its reserve."""
        a, e, b = self.chain()
        return ((b * e) @ a * self.gradient).abs().sum() / math.sqrt(self.out_features * self.in_features)

    def distance(self) -> Tensor:
        """|A A^T - I|_F + |B^T B - I|_F over all blocks."""
        a, b = torch.cat([*self.a]), torch.cat([*self.b], dim=1)
        one = torch.eye(len(a), device=a.device)
        return torch.linalg.norm(a @ a.T - one) + torch.linalg.norm(b.T @ b - one)

    def grow(self) -> list[nn.Parameter]:
        """`add` ranks more; the parameters that are new."""
        self._append(self.add)
        self._activate(self.add, RESERVED if self.advance else 0.0)
        return [self.a[-1], self.b[-1], self.e[-1]]

    def resize(self, growths: int) -> None:
        """Have grown so often, whatever was before."""
        blocks = growths + 1
        self.e, self.a, self.b = self.e[:blocks], self.a[: blocks + self.advance], self.b[: blocks + self.advance]
        while len(self.e) - 1 < growths:
            self.grow()

    def _append(self, size: int) -> None:
        draws = self.draws(len(self.a))
        self.a.append(nn.Parameter(normal((size, self.in_features), STD, draws, self.device)))
        self.b.append(nn.Parameter(normal((self.out_features, size), STD, draws, self.device)))

    def _activate(self, size: int, value: float) -> None:
        self.e.append(nn.Parameter(torch.full((size,), value, device=self.device)))

    def _observe(self, x: Tensor, slope: Tensor) -> None:
        gradient = slope.flatten(0, -2).float().T @ x.flatten(0, -2).float()
        self.gradient = gradient if self.gradient is None else self.gradient + gradient
