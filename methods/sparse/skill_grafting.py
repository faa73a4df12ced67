"""Grafting (Panigrahi et al. 2023, arXiv 2302.06600, Section 2): theta = theta_pre + gamma (theta_ft - theta_pre), gamma binary and sparse.

Full fine-tuning gives theta_ft. Base patch g_0: the `patch` N entries that moved most. Then S <- S - eta dL/dS, S from U(0, 1), with
gamma(S) = g_0 + (1 - 2 g_0) sigma(S - b) and dL/dS = dL/dtheta (theta_ft - theta_pre) (1 - 2 g_0) sigma'(S - b) at theta(gamma(S)). The
graft is the rounded gamma of the best step. Plain gradient steps with a huge eta, as in the official code: sigma' is about 1e-4 at
the start. (Its 1e7 flips nothing in the 10 steps that are the default here, on MiniLM and SST-2; 1e9, the default, does, and the loss
falls with every step.) Adam would move every entry alike and end far from sparse.

Entries are the parameters of the blocks; embeddings and all else outside of them are frozen, and the task head is that of theta_ft,
in no graft (the paper's head is the language model's own, frozen). The loss is taken in eval mode.

Unlike the official code: a step's worth is the loss of the rounded model on the same training rows, not accuracy on training and
validation rows, which are not a method's to see; and the patch holds exactly int(patch N) entries, there those above the last of them.
Rows are counted each time: fine-tuning takes `share` of the budget, a step of S reads its rows twice, and there are as many steps, up to
`iterations`, as the rest pays for (of one pass over the training rows, where the budget is longer).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Batch, Context, Method
from methods.maths import graft
from methods.maths.draws import uniform
from methods.maths.gradients import summed_gradients
from methods.maths.selection import topk_masks
from methods.roles import head_names, layers
from methods.spec import Traits, number

Masks = dict[str, Tensor]
LOSSES = "losses"


class SkillGrafting(Method):
    """Fine-tune, then keep the few entries that carry the task."""

    @dataclass
    class Config:
        """`share`: fine-tuning's part of the budget. `patch`: entries of g_0 over N. `rows`: training rows of a step of S.
        `iterations`: steps of S at most; 0 = the base patch. `mask_lr`: eta. `bias`: b."""

        share: float
        patch: float
        rows: int
        iterations: int
        mask_lr: float
        bias: float

        def __post_init__(self) -> None:
            number("method.share", self.share, 0, 1, open_low=True, open_high=True)
            number("method.patch", self.patch, 0, 1, open_low=True)
            number("method.rows", self.rows, 1)
            number("method.iterations", self.iterations, 0)
            number("method.mask_lr", self.mask_lr, 0, open_low=True)
            number("method.bias", self.bias, 0, open_low=True)

    traits = Traits(randomness=("calibration",), sparse_delta=True)

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Only the blocks and the task head train."""
        inside = {id(p) for block in layers(model) for p in block.parameters()}
        heads = head_names(model)
        self.names = [name for name, p in model.named_parameters() if id(p) in inside]
        for name, p in model.named_parameters():
            p.requires_grad_(id(p) in inside or name in heads)
        return model

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """theta_pre and theta_ft stay in memory for the variants."""
        self.before = self._weights(model)
        ctx.train(model, "fine_tune", share=self.config.share)
        self.after = self._weights(model)
        moved = {name: (self.after[name].float() - value.float()).abs() for name, value in self.before.items()}
        self.total = sum(change.numel() for change in moved.values())
        self.patch = topk_masks(moved, max(1, int(self.config.patch * self.total)))
        found = ctx.once("graft", lambda: self._learn(model, ctx))
        self.losses = found.pop(LOSSES).tolist()
        self.gamma = {name: mask.to(self.before[name].device) for name, mask in found.items()}
        self._put(model, self.gamma)
        return model

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """It is a stock model already; all parameters require gradients again."""
        return model.requires_grad_(True)

    def variants(self, model: nn.Module, ctx: Context) -> Iterator[tuple[str, nn.Module]]:
        """`main` is the graft, `fine_tuned` theta_ft, `base_patch` the graft of g_0: always the same model, with other weights."""
        yield "main", model
        try:
            self._put(model, {name: torch.ones_like(mask) for name, mask in self.patch.items()})
            yield "fine_tuned", model
            self._put(model, self.patch)
            yield "base_patch", model
        finally:
            self._put(model, self.gamma)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Entries of the graft and of g_0, over the `considered` N; how much of the graft lies in g_0; the loss after every step of S."""
        entries, patch = _size(self.gamma), _size(self.patch)
        shared = sum(int((mask & self.patch[name]).sum()) for name, mask in self.gamma.items())
        return {
            "entries": entries, "patch_entries": patch, "considered": self.total, "density": entries / self.total,
            "added": entries - shared, "removed": patch - shared, "losses": self.losses,
        }  # fmt: skip

    def _learn(self, model: nn.Module, ctx: Context) -> Masks:
        """gamma of the best step by name, with the losses of all steps."""
        best, losses = self.patch, []
        s = {name: uniform(t.shape, 0.5, ctx.generator(f"{name}.graft"), t.device) + 0.5 for name, t in self.before.items()}
        rows, steps = self._affordable(ctx)
        with ctx.phase("graft"):
            for _ in range(steps):
                for name, gradient in self.mask_gradients(model, s, list(ctx.batches("train", rows)), ctx).items():
                    s[name] -= self.config.mask_lr * gradient
                gamma = {name: graft.rounded(self.patch[name], value, self.config.bias) for name, value in s.items()}
                self._put(model, gamma)
                losses.append(self._loss(model, ctx.batches("train", rows), ctx))
                best = gamma if losses[-1] < min(losses[:-1], default=torch.inf) else best
        return {**best, LOSSES: torch.tensor(losses, dtype=torch.float64)}

    def mask_gradients(self, model: nn.Module, s: Masks, batches: list[Batch], ctx: Context) -> dict[str, Tensor]:
        """dL/dS, L the mean over rows in eval mode, at theta(gamma(S)), which the model has afterwards."""
        with torch.no_grad():
            for name, before in self.before.items():
                gamma = graft.relaxed(self.patch[name], s[name], self.config.bias)
                model.get_parameter(name).copy_(before + gamma * (self.after[name] - before))
        parameters = {name: model.get_parameter(name) for name in self.names}
        sums = summed_gradients(model, parameters, batches, lambda m, batch: self.loss(m.eval(), batch, ctx))
        rows = sum(len(batch["input_ids"]) for batch in batches)
        return {
            name: total / rows * (self.after[name] - self.before[name]) * graft.slope(self.patch[name], s[name], self.config.bias)
            for name, total in sums.items()
        }

    def _affordable(self, ctx: Context) -> tuple[int, int]:
        """Rows of a step and number of steps that the budget leaves; a step reads its rows twice."""
        left = int((1 - self.config.share) * sum(len(batch["input_ids"]) for batch in ctx.batches("train")))
        rows = min(self.config.rows, max(1, left // 2))
        return rows, min(self.config.iterations, left // (2 * rows))

    @torch.no_grad()
    def _loss(self, model: nn.Module, batches: Iterator[Batch], ctx: Context) -> float:
        """The mean over rows, in eval mode."""
        model.eval()
        sums = [(len(batch["input_ids"]), self.loss(model, batch, ctx).item()) for batch in batches]
        return sum(rows * value for rows, value in sums) / sum(rows for rows, _ in sums)

    @torch.no_grad()
    def _put(self, model: nn.Module, gamma: Masks) -> None:
        for name, mask in gamma.items():
            model.get_parameter(name).copy_(graft.grafted(mask, self.before[name], self.after[name]))

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: model.get_parameter(name).detach().clone() for name in self.names}


def _size(masks: Masks) -> int:
    return sum(int(mask.sum()) for mask in masks.values())
