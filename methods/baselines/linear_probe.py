"""Linear probe (Alain & Bengio 2016, arXiv 1610.01644): W, b = argmin 1/N sum_i loss(W h_i + b, y_i) + l2/2 |W|^2, h frozen."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Batch, Context, Method
from methods.roles import family, output_layer, unwrap
from methods.spec import Traits, number

CHUNK = 8192
"""Rows per pass, so that float64 copies of the features stay small."""
ITERATIONS = {True: 3000, False: 300}
"""L-BFGS iterations at most, for a convex fit or not; a two-layer head on many rows costs seconds an iteration."""
TOLERANCE = 1e-8
"""Largest absolute gradient entry at which the fit has converged."""


class LinearProbe(Method):
    """Fits the task's output layer to convergence on features of the frozen backbone in eval mode.

    Loss: multinomial logistic (or squared error for regression), full batch, float64, L-BFGS; l2 = 1/(C N) in scikit-learn's terms,
    biases are not penalised. With a single-layer output (bert, deberta, decoders) the problem is convex, the fit starts at
    zero and depends on no random draw; bert's pooler, deberta's and distilbert's first head layer stay as loaded. RoBERTa's output is a
    two-layer head: both layers are fitted on the backbone's features from their initial values, which is not convex, so the fit stops
    after 300 iterations at the latest. `measure` says how far it came.
    """

    @dataclass
    class Config:
        """`l2`: weight of |W|^2 / 2 beside the mean loss per example."""

        l2: float

        def __post_init__(self) -> None:
            number("method.l2", self.l2, 0)

    traits = Traits(trains_head_only=True, gradients=False, distributed=())

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Freeze all but the output layer."""
        model.requires_grad_(False)
        output_layer(model).requires_grad_(True)
        return model

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Collect the features of the training rows, solve, and write the solution into the output layer."""
        with ctx.phase("probe"):
            features, labels = collect(model, ctx.batches("train"))
            head = output_layer(model)
            self.solution = solve(head, features, labels, self.config.l2)
        with torch.no_grad():
            for parameter, value in zip(head.parameters(), self.solution.values, strict=True):
                parameter.copy_(value)
        return model

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """How the fit ended."""
        return {"objective": self.solution.objective, "gradient": self.solution.gradient, "iterations": self.solution.iterations}


@dataclass(frozen=True)
class Solution:
    """Where the fit ended."""

    values: list[Tensor]
    """Float64 values of the head's parameters, in their order."""
    objective: float
    gradient: float
    """Largest absolute entry of the gradient."""
    iterations: int


def collect(model: nn.Module, batches: Iterator[Batch]) -> tuple[Tensor, Tensor]:
    """(features, labels) of all rows: what the output layer takes in, (N, d), or (N, 1, d) where it selects a token itself."""
    seen: list[Tensor] = []
    hook = output_layer(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    training, features, labels = model.training, [], []
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                labels.append(batch["labels"])
                model(**{key: value for key, value in batch.items() if key != "labels"})
                features.append(pooled(seen.pop(), batch["input_ids"], model))
    finally:
        hook.remove()
        model.train(training)
    return torch.cat(features), torch.cat(labels)


def pooled(features: Tensor, input_ids: Tensor, model: nn.Module) -> Tensor:
    """The position of (batch, tokens, d) features that decides the logits, as transformers' sequence classifiers choose it.

    Decoders: the rightmost token that is not padding. Encoders: the first, kept as (batch, 1, d) since their head indexes it.
    """
    if features.ndim == 2:
        return features
    if not family(model).decoder:
        return features[:, :1]
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (positions * (input_ids != unwrap(model).config.pad_token_id)).argmax(-1)
    return features[torch.arange(len(features), device=features.device), last]


def solve(head: nn.Module, features: Tensor, labels: Tensor, l2: float) -> Solution:
    """Minimise the objective over `head.parameters()`; `head` itself is left alone.

    Features that are not finite give NaN: the harness then calls the cell diverged instead of reporting the starting point.
    """
    fitted = copy.deepcopy(head).double().eval().requires_grad_(True)
    parameters = list(fitted.parameters())
    convex = isinstance(fitted, nn.Linear)
    if not torch.isfinite(features).all():
        return Solution([torch.full_like(p, torch.nan) for p in parameters], math.nan, math.nan, 0)
    if convex:
        for parameter in parameters:
            nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=ITERATIONS[convex], max_eval=2 * ITERATIONS[convex], history_size=50,
        tolerance_grad=TOLERANCE, tolerance_change=0.0, line_search_fn="strong_wolfe",
    )  # fmt: skip
    optimizer.step(lambda: _objective(fitted, features, labels, l2))
    objective = _objective(fitted, features, labels, l2).item()
    gradient = max(p.grad.abs().max().item() for p in parameters if p.grad is not None)
    return Solution([p.detach() for p in parameters], objective, gradient, optimizer.state[parameters[0]]["n_iter"])


def _objective(head: nn.Module, features: Tensor, labels: Tensor, l2: float) -> Tensor:
    """Value of the objective; its gradient is accumulated chunk by chunk."""
    head.zero_grad()
    total = torch.zeros((), dtype=torch.float64, device=features.device)
    for x, y in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
        loss = _loss(head(x.double()), y) / len(features)
        loss.backward()
        total += loss.detach()
    penalty = 0.5 * l2 * torch.stack([p.square().sum() for p in head.parameters() if p.ndim == 2]).sum()
    penalty.backward()
    return total + penalty.detach()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed squared error where there is one output (as transformers' MSELoss), else summed cross-entropy."""
    if logits.shape[-1] == 1:
        return nn.functional.mse_loss(logits.squeeze(-1), labels.double(), reduction="sum")
    return nn.functional.cross_entropy(logits, labels, reduction="sum")
