"""SpIEL (Ansell et al. 2024, arXiv 2401.16405, Section 3): y = x (W + scatter(delta, eta))^T + b; the K_l indices eta of a map change.

K = r sum(out + in) entries over all targets, K_l = floor(K size_l / sum size). Every S updates the p K_l entries of smallest |delta| are
dropped (their weights are the pretrained ones again) and as many grow with delta = 0; p = 1 the first time, then p0 decays to 0.

`ag`, accumulated gradients: A updates before each change the K_l largest |dL/dW| of the first pass become candidates, of which sum g and
sum g^2 over these A updates decide: the largest |sum g| grow. An entry has its own age t in AdamW; a grown one starts with t = A,
m = (1 - b1^A) mean g, v = (1 - b2^A) mean g^2, as if Adam had seen these gradients.
`ma`, momentum approximation: the entries train by SM3, whose accumulators r (out,), c (in,) of rows and columns score inactive entries by
r_i c_j. The task head has AdamW in both. Weight decay pulls delta, and so the weights to the pretrained ones.

Where this differs from the authors' code: m and v are seeded with the factors above, which the division by 1 - b^t asks for; every
accumulation lasts A updates (there 1 more, but for the first); g is that of a whole update, before clipping; SM3 decays weights too.
The gradient of a whole matrix exists within the backward pass of one map.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.own_base import AdapterMethod, wrapped
from methods.adapters.wrapped import map_shape
from methods.base import Context, TrainSettings
from methods.maths.entry_adam import EntryAdamW
from methods.maths.rank_filter import largest_positions
from methods.maths.regrow import exchange, smallest
from methods.maths.sm3 import momentum_scores, sm3_accumulate
from methods.roles import role_names
from methods.sparse.entries import EntryLinear, entry_groups
from methods.spec import Diverged, Traits, UserError, choice, linear_roles, number


@dataclass
class Candidates:
    """Entries of one map that may grow (C,)."""

    positions: Tensor
    step: Tensor
    """g of the running update."""
    sums: Tensor
    """sum g over the finished updates of this accumulation."""
    squares: Tensor
    """sum g^2."""


class Spiel(AdapterMethod):
    """Single entries of the targets train; their places follow the gradient."""

    @dataclass
    class Config:
        """`r`: K = r sum(out + in), as many as LoRA of this rank trains. `growth`: ag or ma. `interval`: S. `accumulation`: A.

        `rate`: p0; `policy`: how it decays.
        """

        r: int
        growth: str
        interval: int
        accumulation: int
        rate: float
        policy: str
        targets: list[str]

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            choice("method.growth", self.growth, ("ag", "ma"))
            number("method.interval", self.interval, 1)
            number("method.accumulation", self.accumulation, 1, self.interval)
            number("method.rate", self.rate, 0, 1)
            choice("method.policy", self.policy, ("linear", "cosine"))
            linear_roles("method.targets", self.targets)

        def adjust(self, traits: Traits) -> Traits:
            """Candidates are those of one process's gradients; attention-only targets work on mixtures of experts too."""
            distributed = () if self.growth == "ag" else traits.distributed
            return replace(traits, moe=not {"gate", "up", "down"} & set(self.targets), distributed=distributed)

    traits = Traits(randomness=("mask",), sparse_delta=True)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Draw the first indices and wrap the targets."""
        shapes = {name: map_shape(model.get_submodule(name)) for name in role_names(model, self.config.targets)}
        self.counts = budgets(shapes, self.config.r)
        model = super().prepare(model, ctx)
        self.layers = wrapped(model)
        self.candidates: dict[str, Candidates] = {}
        self.pending: dict[str, Tensor] = {}
        """dL/dW of maps whose candidates are not chosen yet; a map that is used twice in a pass adds both."""
        for name, layer in self.layers.items():
            layer.values.register_post_accumulate_grad_hook(partial(self._choose, name))
        return model

    def wrap(self, base: nn.Module, name: str, ctx: Context) -> EntryLinear:
        """The target with K_l random entries."""
        out, into = map_shape(base)
        if base.weight.is_meta:
            return EntryLinear(base, torch.empty(self.counts[name], dtype=torch.int64, device="meta"), adds=True)
        drawn = torch.randperm(out * into, generator=ctx.generator(f"{name}.indices"))[: self.counts[name]]
        return EntryLinear(base, drawn.sort().values, adds=True)

    def optimizer(self, model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
        """AdamW with ages, or SM3 on the entries."""
        betas = (settings.beta1, settings.beta2)
        groups = entry_groups(model, settings, aged=True, sm3=self.config.growth == "ma")
        layers = {id(layer.values): layer for layer in self.layers.values()}
        self.moments = SpielOptimizer(groups, layers, lr=settings.lr, betas=betas, eps=settings.epsilon)
        return self.moments

    def on_step(self, model: nn.Module, step: int, ctx: Context) -> None:
        """Watch dL/dW for the first A of every S updates."""
        within = step % self.config.interval
        if within == 0:
            self.candidates.clear()
        self.pending.clear()
        watching = self.config.growth == "ag" and within < self.config.accumulation
        for name, layer in self.layers.items():
            layer.watch = partial(self._observe, name) if watching else None

    def on_gradients(self, model: nn.Module, step: int, ctx: Context) -> None:
        """g of the update is whole: into the sums."""
        for candidates in self.candidates.values():
            candidates.sums += candidates.step
            candidates.squares += candidates.step**2
            candidates.step.zero_()

    def on_update(self, model: nn.Module, step: int, ctx: Context) -> None:
        """After A of every S updates: drop and grow, but for the last update, which nothing would follow."""
        last = step == ctx.total_steps
        if not last and step % self.config.interval != self.config.accumulation % self.config.interval:
            return
        rate = 1.0 if step == self.config.accumulation else self.rate(step / ctx.total_steps)
        for name, layer in self.layers.items():
            layer.watch = None
            if not last:
                self._reselect(name, layer, int(rate * len(layer.values)))
        self.candidates.clear()

    def rate(self, progress: float) -> float:
        """p after that share of the training."""
        decay = 1 - progress if self.config.policy == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.config.rate * decay

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Entries that train, and their share of the targets' weights."""
        entries = sum(self.counts.values())
        return {"entries": entries, "density": entries / sum(layer.out_features * layer.in_features for layer in self.layers.values())}

    def state_dict(self) -> dict[str, Tensor]:
        """The candidates of a running accumulation, between updates."""
        parts = ("positions", "sums", "squares")
        return {f"{name}.{part}": getattr(c, part) for name, c in self.candidates.items() for part in parts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take them back."""
        self.candidates = {}
        for name in sorted({key.rpartition(".")[0] for key in state}):
            device = self.layers[name].device
            positions, sums, squares = (state[f"{name}.{part}"].to(device) for part in ("positions", "sums", "squares"))
            self.candidates[name] = Candidates(positions, torch.zeros_like(sums), sums, squares)

    def _observe(self, name: str, slope: Tensor) -> None:
        if name in self.candidates:
            candidates = self.candidates[name]
            candidates.step += slope.flatten()[candidates.positions].float()
        else:
            self.pending[name] = self.pending[name] + slope if name in self.pending else slope

    def _choose(self, name: str, values: Tensor) -> None:
        """After the first backward pass that reached a map: its candidates."""
        if name not in self.pending:
            return
        slope = self.pending.pop(name).flatten().float()
        if not torch.isfinite(slope).all():
            raise Diverged(f"the gradient of {name} is not finite")
        positions = largest_positions(slope.abs(), len(values))
        zero = torch.zeros(len(positions), device=slope.device)
        self.candidates[name] = Candidates(positions, slope[positions], zero, zero.clone())

    @torch.no_grad()
    def _reselect(self, name: str, layer: EntryLinear, count: int) -> None:
        if self.config.growth == "ma":
            slots, incoming = self._approximated(layer, count)
        elif name in self.candidates:
            slots, incoming = self._accumulated(self.candidates[name], layer, count)
        else:
            return  # the loss never reached this map
        layer.positions[slots] = incoming.to(layer.positions.dtype)
        layer.values[slots] = 0.0

    def _accumulated(self, candidates: Candidates, layer: EntryLinear, count: int) -> tuple[Tensor, Tensor]:
        """(slots, positions that fill them); seeds their moments."""
        scores = candidates.sums.abs()
        slots, chosen = exchange(layer.positions.long(), layer.values.abs(), candidates.positions, scores, count)
        age, state, (b1, b2) = self.config.accumulation, self.moments.state[layer.values], self.moments.param_groups[0]["betas"]
        state["t"][slots] = float(age)
        state["m"][slots] = (1 - b1**age) * candidates.sums[chosen] / age
        state["v"][slots] = (1 - b2**age) * candidates.squares[chosen] / age
        return slots, candidates.positions[chosen]

    def _approximated(self, layer: EntryLinear, count: int) -> tuple[Tensor, Tensor]:
        """(slots, positions that fill them); entries that are active, leaving ones too, do not grow."""
        state = self.moments.state[layer.values]
        scores = momentum_scores(state["rows"], state["columns"]).flatten()
        if not torch.isfinite(scores).all():
            raise Diverged("the accumulated gradients are not finite")
        scores[layer.positions.long()] = -1.0
        count = min(count, len(scores) - len(layer.values))
        return smallest(layer.values.abs(), count), largest_positions(scores, count)


class SpielOptimizer(EntryAdamW):
    """SM3 for groups with the option `sm3`, whose state is `rows` (out,) and `columns` (in,); AdamW for the others."""

    def __init__(self, params: Any, layers: dict[int, EntryLinear], lr: float, betas: tuple[float, float], eps: float) -> None:
        """`layers`: of each vector of entries, by its `id`."""
        super().__init__(params, lr, betas, eps)
        self.layers = layers

    def update(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        """delta <- delta - lr g / sqrt(u + eps), or Adam's."""
        if not group.get("sm3"):
            return super().update(parameter, gradient, group)
        layer, state = self.layers[id(parameter)], self.state[parameter]
        if not state:
            sizes = {"rows": layer.out_features, "columns": layer.in_features}
            state |= {key: torch.zeros(size, device=parameter.device) for key, size in sizes.items()}
        u = sm3_accumulate(state["rows"], state["columns"], gradient, layer.positions.long())
        parameter.sub_(group["lr"] * gradient / (u + group["eps"]).sqrt())


def budgets(shapes: dict[str, tuple[int, int]], r: int) -> dict[str, int]:
    """K_l of every target (out, in): its share by size of K = r sum(out + in), rounded down."""
    total, size = r * sum(out + into for out, into in shapes.values()), sum(out * into for out, into in shapes.values())
    if total > size:
        raise UserError(f"method.r={r} asks for {total} of the {size} weights of the targets; give a smaller method.r")
    return {name: total * out * into // size for name, (out, into) in shapes.items()}
