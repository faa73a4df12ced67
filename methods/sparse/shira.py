"""SHiRA (Bhardwaj et al. 2024, arXiv 2406.13175, Section 3): y = x (W + scatter(S, M))^T + b; S starts at 0, M is fixed.

M has K = r (in + out) ones: `random`; `struct` = the diagonal, then whole rows and columns by turns; `magnitude` = largest |W|;
`gradient` = largest |dL/dW|, L summed over some training rows; `snip` = largest |W dL/dW|. An implementation of
its own: PEFT's (equal in the tests) makes a sparse tensor in every forward pass and has neither Conv1D nor the meta device. S is float32
and enters the weight before that is rounded.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from methods.adapters.own_base import AdapterMethod
from methods.adapters.wrapped import WrappedLinear, map_shape, weight_and_bias
from methods.base import Context
from methods.maths.gradients import summed_gradients
from methods.maths.masks import topk_mask
from methods.roles import role_names, weight_is_transposed
from methods.spec import Traits, UserError, choice, linear_roles, number


class SparseDelta(WrappedLinear):
    """W plus `values` (K,) at the flat positions `indices` (K,) of W (out, in)."""

    def __init__(self, base: nn.Module, indices: Tensor) -> None:
        super().__init__(base)
        self.values = nn.Parameter(torch.zeros(len(indices), device=self.device))
        self.register_buffer("indices", indices.to(self.device))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        weight, bias = weight_and_bias(self.base_layer)
        dtype = self.stock().weight.dtype
        return linear(x, self._changed(weight).to(dtype), None if bias is None else bias.to(dtype))

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """(W + scatter(S, M), b)."""
        weight, bias = weight_and_bias(self.base_layer)
        return self._changed(weight), bias

    def _changed(self, weight: Tensor) -> Tensor:
        return weight.flatten().scatter_add(0, self.indices, self.values).view_as(weight)


class Shira(AdapterMethod):
    """A sparse change of the targets, trained as a vector of K values each."""

    @dataclass
    class Config:
        """`r`: K = r (in + out), as many as LoRA of this rank trains. `examples`: training rows that gradient and snip look at."""

        r: int
        targets: list[str]
        mask: str
        examples: int

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            linear_roles("method.targets", self.targets)
            choice("method.mask", self.mask, ("random", "struct", "magnitude", "gradient", "snip"))
            number("method.examples", self.examples, 1)

        def adjust(self, traits: Traits) -> Traits:
            """Only some masks draw."""
            drawn = {"random": ("mask",), "struct": ("mask",), "magnitude": ()}
            return replace(traits, randomness=drawn.get(self.mask, ("calibration",)))

    traits = Traits(randomness=("mask",))

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Choose the positions once, then wrap the targets."""
        self.indices = ctx.once("shira", lambda: self._choose(model, ctx))
        return super().prepare(model, ctx)

    def wrap(self, base: nn.Module, name: str, ctx: Context) -> SparseDelta:
        """The target with its positions."""
        return SparseDelta(base, self.indices[name])

    def _choose(self, model: nn.Module, ctx: Context) -> dict[str, Tensor]:
        """Flat positions (K,) by target name, ascending."""
        names = role_names(model, self.config.targets)
        score = self._scorer(model, names, ctx)
        return {name: self._positions(model.get_submodule(name), name, score) for name in names}

    def _positions(self, module: nn.Module, name: str, score: Callable[[str], Tensor]) -> Tensor:
        out, into = map_shape(module)
        k = self.config.r * (out + into)
        if k > out * into:
            raise UserError(f"method.r={self.config.r} asks for {k} of the {out * into} weights of {name}; give a smaller method.r")
        if module.weight.is_meta:
            return torch.empty(k, dtype=torch.long, device="meta")
        return topk_mask(score(name).flatten(), k).nonzero().flatten()

    def _scorer(self, model: nn.Module, names: list[str], ctx: Context) -> Callable[[str], Tensor]:
        """Scores (out, in) of a target by name; the K largest are trained."""
        mask = self.config.mask
        shape = lambda name: map_shape(model.get_submodule(name))  # noqa: E731
        if mask == "random":
            return lambda name: torch.rand(shape(name), generator=ctx.generator(f"{name}.mask"), dtype=torch.float64)
        if mask == "struct":
            return lambda name: structure(shape(name), ctx.generator(f"{name}.mask"))
        magnitude = lambda name: weight_and_bias(model.get_submodule(name))[0].abs()  # noqa: E731
        if mask == "magnitude" or model.get_submodule(names[0]).weight.is_meta:
            return magnitude
        slopes = self._slopes(model, names, ctx)
        return slopes.__getitem__ if mask == "gradient" else lambda name: slopes[name] * magnitude(name)

    def _slopes(self, model: nn.Module, names: list[str], ctx: Context) -> dict[str, Tensor]:
        """|dL/dW| (out, in) by target name, of the sum over the rows."""
        modules = {name: model.get_submodule(name) for name in names}
        rows = ctx.batches("train", self.config.examples)
        weights = {name: module.weight for name, module in modules.items()}
        sums = summed_gradients(model, weights, rows, lambda m, batch: self.loss(m, batch, ctx))
        return {name: (g.mT if weight_is_transposed(modules[name]) else g).abs() for name, g in sums.items()}


def structure(shape: tuple[int, int], draws: torch.Generator) -> Tensor:
    """Scores (out, in) whose largest are the diagonal, then one random row, one random column, another row and so on; no ties."""
    out, into = shape
    rows, columns = -2.0 * torch.randperm(out, generator=draws), -1 - 2.0 * torch.randperm(into, generator=draws)
    scores = torch.maximum(rows[:, None], columns[None]).double()
    scores.fill_diagonal_(1)
    return scores - torch.arange(out * into).view(shape) / (2 * out * into)
