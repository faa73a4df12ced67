"""Poly and MHR (Caccia et al. 2023, arXiv 2211.03831, Eq. 3-6): W' = W + (A_t B_t)^T / r, each factor a mixture of S skills in H splits.

A_t stacks sum_j w_hj A_hj over the splits h of the inputs, B_t sum_j w_hj B_hj over those of the outputs; w_hj = u_hj / sum_j u_hj, where u
is drawn from RelaxedBernoulli(Z_t, temperature 1) in training and is sigmoid(Z_t) else. H = 1 is Poly. A starts Kaiming uniform, B at 0,
Z (T, H S) at U(-1e-3, 1e-3). The task t of a row comes from `task_ids` of the batch, and is 0 without it.

Stages (the paper's few-shot adaptation, here on the same rows): after `1 - second` of training `z` draws Z anew and trains it alone, and
`mu` averages the skills into one LoRA per target, A_mu = mean A_hj and B_mu = mean B_hj, and trains that.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel, PolyConfig
from torch import Tensor, nn

from methods.adapters.own_base import fold, insert, wrapped
from methods.adapters.peft_base import ADAPTER, PeftMethod, adapted, convert_conv1d, restore_conv1d, split_groups
from methods.adapters.wrapped import LowRankLinear
from methods.base import Context, TrainSettings, parameter_groups
from methods.maths.draws import uniform
from methods.roles import head_names, role_names
from methods.spec import Traits, UserError, choice, linear_roles, number


class Mhr(PeftMethod):
    """PEFT's Poly: S r (in + out) + T H S trained parameters a target. It folds where one task, or the average, is left."""

    @dataclass
    class Config:
        """`skills`: S. `heads`: H, which divides the sides of every target. `tasks`: T. `stage`: joint (no second one), z or mu.

        `second`: share of the training that the second stage gets. `routing_ratio`: learning rate of Z over that of A and B.
        """

        r: int
        skills: int
        heads: int
        tasks: int
        targets: list[str]
        stage: str
        second: float
        routing_ratio: float

        def __post_init__(self) -> None:
            for key in ("r", "skills", "heads", "tasks"):
                number(f"method.{key}", getattr(self, key), 1)
            linear_roles("method.targets", self.targets)
            choice("method.stage", self.stage, ("joint", "z", "mu"))
            number("method.second", self.second, 0, 1, open_low=True, open_high=True)
            number("method.routing_ratio", self.routing_ratio, 0, open_low=True)

        def adjust(self, traits: Traits) -> Traits:
            """Several tasks, each with weights of its own, fit in no single stock model."""
            one = self.tasks == 1 or self.stage == "mu"
            return replace(traits, folds=one, exports_lora=one)

    traits = Traits(randomness=("init", "forward"), exports_lora=True)

    def peft_config(self, model: nn.Module) -> PolyConfig:
        """Poly on the targets."""
        c = self.config
        names = role_names(model, c.targets)
        return PolyConfig(r=c.r, n_skills=c.skills, n_splits=c.heads, n_tasks=c.tasks, target_modules=names)

    def prepare(self, model: nn.Module, ctx: Context) -> PeftModel:
        """Wrap the targets, and let every forward pass tell them its tasks."""
        self._check(model)
        convert_conv1d(model, role_names(model, self.config.targets))
        prepared, tasks = super().prepare(model, ctx), Tasks()
        prepared.register_forward_pre_hook(tasks.take, with_kwargs=True)
        for layer in adapted(prepared).values():
            layer.register_forward_pre_hook(tasks.give, with_kwargs=True)
        return prepared

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """One joint stage, or the skills and then what `stage` says."""
        c = self.config
        if c.stage == "joint":
            return ctx.train(model)
        model = ctx.train(model, "skills", share=1 - c.second, select=False)
        return ctx.train(averaged(model) if c.stage == "mu" else self._rerouted(model, ctx), share=c.second)

    def groups(self, model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
        """Z in groups of its own, without weight decay."""
        rate = settings.lr * self.config.routing_ratio
        return split_groups(model, parameter_groups(model, settings), "module_logits", lr=rate, weight_decay=0.0)

    def lora(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """(B^T / r, A^T) of task 0, or of the average."""
        if own := wrapped(model):
            return {name: layer.factors() for name, layer in own.items()}
        return {name: task_factors(layer, 0) for name, layer in adapted(model).items()}

    @torch.no_grad()
    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The stock model of the one task or of the average; with several tasks the model as it is."""
        if wrapped(model):
            fold(model)
            return model.requires_grad_(True)
        if self.config.tasks > 1:
            return model
        for layer in adapted(model).values():
            up, down = task_factors(layer, 0)
            weight = layer.get_base_layer().weight
            weight.copy_(weight.float() + up @ down)
        return restore_conv1d(model).unload().requires_grad_(True)

    def detach(self, model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
        """The stock model, and skills and routing by parameter name."""
        tensors = {name: p.detach() for name, p in model.named_parameters() if ".poly_" in name}
        return restore_conv1d(model).unload(), tensors

    @torch.no_grad()
    def attach(self, model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
        """The inverse of `detach`."""
        prepared = self.prepare(model, None)
        parameters = dict(prepared.named_parameters())
        for name, tensor in tensors.items():
            parameters[name].data = tensor.to(parameters[name].device)
        return prepared

    def _check(self, model: nn.Module) -> None:
        for name in role_names(model, self.config.targets):
            sides = model.get_submodule(name).weight.shape
            if any(side % self.config.heads for side in sides):
                raise UserError(f"method.heads={self.config.heads} does not divide both sides {tuple(sides)} of {name}; give a divisor")

    @torch.no_grad()
    def _rerouted(self, model: nn.Module, ctx: Context) -> nn.Module:
        """MHR-z: Z is drawn anew and trains alone beside the head."""
        for name, layer in adapted(model).items():
            logits = layer.poly_router[ADAPTER].module_logits
            logits.copy_(uniform(logits.shape, 1e-3, ctx.generator(f"{name}.routing"), logits.device))
        heads = head_names(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in heads or "module_logits" in name)
        return model


class Tasks:
    """Carries the task ids of a forward pass from the model to its adapted layers, under any caller."""

    def __init__(self) -> None:
        self.ids: Tensor | None = None

    def take(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before the model: `task_ids` (batch,) leave its arguments."""
        self.ids = kwargs.pop("task_ids", None)
        return args, kwargs

    def give(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before a layer: the ids, or task 0 for every row."""
        ids = torch.zeros(len(args[0]), dtype=torch.long) if self.ids is None else self.ids
        return args, kwargs | {"task_ids": ids}


class MeanLora(LowRankLinear):
    """MHR-mu: y = W x + B_mu^T A_mu^T x / r."""

    def __init__(self, base: nn.Module, a: Tensor, b: Tensor) -> None:
        super().__init__(base)
        self.lora_a, self.lora_b = nn.Parameter(a.clone()), nn.Parameter(b.clone())

    def chain(self) -> list[Tensor]:
        """A_mu^T (r, in) and B_mu^T / r (out, r)."""
        return [self.lora_a, self.lora_b / len(self.lora_a)]


@torch.no_grad()
def averaged(model: nn.Module) -> nn.Module:
    """The stock model under `MeanLora` in the place of PEFT's layers; they, and the head, train."""
    means = {}
    for name, layer in adapted(model).items():
        skills = layer.n_skills[ADAPTER]
        means[name] = mixture(layer, torch.full((layer.n_splits[ADAPTER], skills), 1 / skills, device=layer.poly_lora_A[ADAPTER].device))
    stock = restore_conv1d(model).unload()
    insert(stock, {name: MeanLora(stock.get_submodule(name), a, b) for name, (a, b) in means.items()})
    return stock


def mixture(layer: nn.Module, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(A^T (r, in), B^T (out, r)) of a Poly layer under mixing weights (H, S), float32."""
    a, b = layer.poly_lora_A[ADAPTER].float(), layer.poly_lora_B[ADAPTER].float()
    mixed_a = torch.einsum("hs,hsdr->hdr", weights, a).flatten(0, 1)
    return mixed_a.mT, torch.einsum("hs,hsrd->hdr", weights, b).flatten(0, 1)


@torch.no_grad()
def task_factors(layer: nn.Module, task: int) -> tuple[Tensor, Tensor]:
    """(B_t^T / r (out, r), A_t^T (r, in)) under the weights of evaluation."""
    shape = (layer.n_splits[ADAPTER], layer.n_skills[ADAPTER])
    chosen = layer.poly_router[ADAPTER].module_logits[task].float().view(shape).sigmoid()
    down, up = mixture(layer, chosen / (chosen.sum(-1, keepdim=True) + 1e-12))
    return up / layer.r[ADAPTER], down
