"""LT-SFT (Ansell et al. 2022, arXiv 2110.07560, Section 3): theta = theta_0 + phi with K non-zeros in phi.

Full phase: theta_1 from theta_0, all parameters train. mu_i = 1 for the K entries with the largest |theta_1 - theta_0|, compared over all
maskable tensors together. Rewind to theta_0, fresh optimizer and schedule. Sparse phase: theta <- theta - eta Adam(mu * grad L).
With n iterations each adds K / n entries among those still frozen, and rewinds to what its own full phase began with.

Maskable is every parameter but the normalisations, which stay frozen, and the task head, which trains whole and does not count in K.
`selection: random` is the paper's Rand-SFT: mu is drawn, and the budget that a full phase would take goes to the sparse phase.
Both phases share the budget's examples (`full_share`); in the paper each has the length of a full fine-tuning.

Unlike the official code: exactly K entries on ties, K in all where n does not divide it, and decoupled weight decay (0 there) acts on
chosen entries alone, since all others are set back to theta_0 after every update. L1: lambda / N sum |theta - theta_0| over
maskable entries, N all parameters of the model, enters as its subgradient, once a step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Context, Method
from methods.maths.draws import uniform
from methods.maths.selection import topk_masks
from methods.roles import head_names, norms, unwrap
from methods.spec import Traits, UserError, choice, number

SUFFIX = "_chosen"
"""mu of parameter `weight` is the buffer `weight_chosen` of the same module."""


class LtSft(Method):
    """Full fine-tuning to find a mask, then fine-tuning under it from the same start."""

    @dataclass
    class Config:
        """`density`: K over the maskable entries; `k`: K itself, then `density` does not count. `full_share`: the full phases' part of
        the budget. `l1`: lambda, in both phases. `selection`: `change`, or `random` = Rand-SFT, without full phases."""

        density: float
        k: int | None
        iterations: int
        full_share: float
        l1: float
        selection: str

        def __post_init__(self) -> None:
            number("method.density", self.density, 0, 1, open_low=True)
            number("method.k", 1 if self.k is None else self.k, 1)
            number("method.iterations", self.iterations, 1)
            number("method.full_share", self.full_share, 0, 1, open_low=True, open_high=True)
            number("method.l1", self.l1, 0)
            choice("method.selection", self.selection, ("change", "random"))
            if self.selection == "random" and self.iterations > 1:
                raise UserError(f"method.iterations={self.iterations} has no meaning for method.selection=random; give method.iterations=1")

        def adjust(self, traits: Traits) -> Traits:
            """Only Rand-SFT draws."""
            return replace(traits, randomness=("mask",)) if self.selection == "random" else traits

    traits = Traits(sparse_delta=True)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Freeze the normalisations; Rand-SFT draws its mask here."""
        for norm in norms(model).values():
            norm.requires_grad_(False)
        self.names = [name for name, p in model.named_parameters() if p.requires_grad and name not in head_names(model)]
        self.chosen = self._k(model)
        self.hooks: list[Any] = []
        self.masking = self.config.selection == "random"
        if self.masking:
            draw = lambda name, p: uniform(p.shape, 1.0, ctx.generator(f"{name}.mask"), p.device)  # noqa: E731
            self._choose(model, {name: draw(name, p) for name, p in self._maskable(model)}, self.chosen)
        return model

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Nothing between the phases is kept on disk: the mask follows from restored weights, bit for bit."""
        self.start = {name: p.detach().clone() for name, p in self._maskable(model)}
        if self.config.selection == "random":
            return ctx.train(model, "sparse")
        for i in range(self.config.iterations):
            self._iterate(model, i, ctx)
        return model

    def _iterate(self, model: nn.Module, i: int, ctx: Context) -> None:
        """Full phase, choice of new entries, rewind, sparse phase."""
        c, n = self.config, self.config.iterations
        mark = "" if n == 1 else f"-{i + 1}"
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        self.masking = False
        ctx.train(model, f"full{mark}", share=c.full_share / n, select=False)
        self._choose(model, self._changes(model), self.chosen * (i + 1) // n - self.chosen * i // n)
        rewind(model, before)
        del before
        self.masking = True
        ctx.train(model, f"sparse{mark}", share=(1 - c.full_share) / n, select=i == n - 1)

    def on_gradients(self, model: nn.Module, step: int, ctx: Context) -> None:
        """The subgradient of the L1 term; it is 0 outside of mu, where theta = theta_0."""
        if self.config.l1:
            strength = self.config.l1 / sum(p.numel() for p in model.parameters())
            for name, p in self._maskable(model):
                if p.grad is not None:
                    p.grad.add_((p.detach() - self.start[name]).sign(), alpha=strength)

    @torch.no_grad()
    def on_update(self, model: nn.Module, step: int, ctx: Context) -> None:
        """In a sparse phase everything outside of mu is theta_0 again, whatever weight decay did."""
        for name, p in self._maskable(model) if self.masking else ():
            p.copy_(torch.where(chosen(model, name), p, self.start[name]))

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The stock model: masks and hooks are gone, all parameters require gradients again."""
        for hook in self.hooks:
            hook.remove()
        for name in self.names:
            module, parameter = _owner(model, name)
            delattr(module, parameter + SUFFIX)
        return model.requires_grad_(True)

    @torch.no_grad()
    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """`chosen`: K. `changed`: entries of phi that are not 0. `density`: K over the maskable entries."""
        maskable = sum(p.numel() for _, p in self._maskable(model))
        changed = sum(int((p != self.start[name]).sum()) for name, p in self._maskable(model))
        return {"chosen": self.chosen, "changed": changed, "maskable": maskable, "density": self.chosen / maskable}

    def _k(self, model: nn.Module) -> int:
        c, total = self.config, sum(p.numel() for _, p in self._maskable(model))
        k = max(1, int(c.density * total)) if c.k is None else c.k
        if k > total:
            raise UserError(f"method.k={k} is more than the {total} maskable entries of this {unwrap(model).config.model_type}; give fewer")
        return k

    def _maskable(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, model.get_parameter(name)) for name in self.names)

    @torch.no_grad()
    def _changes(self, model: nn.Module) -> dict[str, Tensor]:
        """|theta_1 - theta_0|, float32; an entry that was chosen before comes last."""
        changes = {name: (p.float() - self.start[name].float()).abs() for name, p in self._maskable(model)}
        return {name: change.masked_fill(chosen(model, name), -torch.inf) for name, change in changes.items()} if self.hooks else changes

    def _choose(self, model: nn.Module, scores: dict[str, Tensor], k: int) -> None:
        """Add the k best entries to mu, the first time with gradient hooks. On the meta device only shapes count."""
        meta = any(score.is_meta for score in scores.values())
        masks = {name: score.bool() for name, score in scores.items()} if meta else topk_masks(scores, k)
        for name, mask in masks.items():
            module, parameter = _owner(model, name)
            module.register_buffer(parameter + SUFFIX, mask | chosen(model, name) if self.hooks else mask)
        self.hooks = self.hooks or [p.register_hook(self._masker(model, name)) for name, p in self._maskable(model)]

    def _masker(self, model: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
        return lambda gradient: gradient * chosen(model, name) if self.masking else gradient


def chosen(model: nn.Module, name: str) -> Tensor:
    """mu of a parameter."""
    return model.get_buffer(name + SUFFIX)


@torch.no_grad()
def rewind(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Give parameters back the values that they had."""
    for name, value in before.items():
        model.get_parameter(name).copy_(value)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, parameter = name.rpartition(".")
    return model.get_submodule(path), parameter
