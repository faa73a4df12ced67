"""Training in a random subspace (Li et al. 2018, arXiv 1804.08838, Eq. 2; Aghajanyan et al. 2020, arXiv 2012.13255, Eqs. 2-4).

theta = theta0 + P v for all parameters of the backbone at once, biases, norms and embeddings too: one v in R^d, 0 at first, trains; P is
random and fixed. The smallest d that reaches 90 % of full fine-tuning (`analysis/d90.py`) is the intrinsic dimension. The task head trains
as ever, outside of d. `said`: theta_l = theta0_l + lambda_l P_l v' with a trained lambda_l, 1 at first, for each transformer block and
one for all that lies outside them; v' has that many entries less, so that d parameters train.

`dense`: P Gaussian, its columns of norm 1 over the whole backbone (2018). `fastfood`: an own P_t for every tensor, E |P_t v| = |v| (2020).
Differences from the code of the 2020 paper: there every tensor has a lambda; here every layer, as the paper says, or d could not be below
the number of tensors. There v is cut for tensors of less than d entries; here their transform is longer. P is made again from
the seed at every start, and never stored.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from methods.base import Context, Method, freeze_backbone
from methods.maths.draws import normal
from methods.maths.fastfood import Fastfood
from methods.roles import layers
from methods.spec import Traits, UserError, choice, number

Projection = Callable[[Tensor], Tensor]
"""v (d,) -> P_t v, as long as the tensor t has entries."""


class IntrinsicDim(Method):
    """Fine-tuning with d parameters and a task head, whatever the size of the backbone."""

    @dataclass
    class Config:
        """`d`: trained parameters outside the head. `projection`: `dense` holds d numbers per backbone parameter, `fastfood` 2 to 4."""

        d: int
        projection: str
        said: bool

        def __post_init__(self) -> None:
            number("method.d", self.d, 1)
            choice("method.projection", self.projection, ("fastfood", "dense"))

    traits = Traits(randomness=("init",))

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Give every tensor of the backbone its share of P v."""
        freeze_backbone(model)
        places = {name: p for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        first = {id(p): name for name, p in reversed(places.items())}
        outside = dict.fromkeys(first, 0)
        structures = outside | {id(p): i for i, block in enumerate(layers(model), 1) for p in block.parameters()}
        self.subspace = model.subspace = self._subspace(model, next(iter(places.values())).device)
        projections = self._projections({first[id(p)]: p for p in places.values()}, ctx)
        for name, p in places.items():
            path, _, own = name.rpartition(".")
            moved = Moved(projections[first[id(p)]], self.subspace, structures[id(p)])
            parametrize.register_parametrization(model.get_submodule(path), own, moved, unsafe=True)
        self.hooks = compute_once_per_forward(model)
        return model

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """theta in the places of theta0; tied tensors stay tied."""
        for hook in self.hooks:
            hook.remove()
        places = [(m, name) for m in model.modules() if parametrize.is_parametrized(m) for name in m.parametrizations]
        for_one: dict[nn.Parameter, Tensor] = {}
        with torch.no_grad():
            for module, name in places:
                for_one[module.parametrizations[name].original] = getattr(module, name)
                parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            for parameter, value in for_one.items():
                parameter.copy_(value)
        del model.subspace
        return model.requires_grad_(True)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """|v|, and the lambdas: of what lies outside the blocks, then of the blocks."""
        scales = self.subspace.scales
        return {"norm": self.subspace.v.norm().item(), "scales": None if scales is None else scales.tolist()}

    def _subspace(self, model: nn.Module, device: torch.device) -> "Subspace":
        structures = len(layers(model)) + 1 if self.config.said else 0
        if self.config.d <= structures:
            raise UserError(f"method.d={self.config.d} leaves nothing beside the {structures} scales of method.said; give more")
        return Subspace(self.config.d - structures, structures, device)

    def _projections(self, tensors: dict[str, nn.Parameter], ctx: Context) -> dict[str, Projection]:
        d = len(self.subspace.v)
        if self.config.projection == "fastfood":
            return {name: Fastfood.draw(p.numel(), d, ctx.generator(name), p.device) for name, p in tensors.items()}
        parts = {name: normal((p.numel(), d), 1.0, ctx.generator(name), p.device) for name, p in tensors.items()}
        return {name: partial(torch.mv, part) for name, part in with_unit_columns(parts).items()}


class Subspace(nn.Module):
    """What trains: v (d',), and with `structures` that many lambdas."""

    def __init__(self, d: int, structures: int, device: torch.device) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.zeros(d, device=device))
        self.scales = nn.Parameter(torch.ones(structures, device=device)) if structures else None


class Moved(nn.Module):
    """theta0_t -> theta0_t + lambda P_t v, summed in float32 and rounded to the type of theta0_t."""

    def __init__(self, projection: Projection, subspace: Subspace, structure: int) -> None:
        super().__init__()
        self.projection, self.structure = projection, structure
        self.shared = (subspace,)  # a tuple: its parameters belong to the model, not to each of its tensors

    def forward(self, start: Tensor) -> Tensor:
        (subspace,) = self.shared
        with torch.autocast(start.device.type, enabled=False):
            change = self.projection(subspace.v)
            if subspace.scales is not None:
                change = subspace.scales[self.structure] * change
            return (start + change.view_as(start)).to(start.dtype)


def with_unit_columns(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices (rows_t, d), scaled in place so that each column has norm 1 over all of them."""
    norms = sum(part.square().sum(0) for part in parts.values()) ** 0.5
    return {name: part.div_(norms) for name, part in parts.items()}


def compute_once_per_forward(model: nn.Module) -> list[Any]:
    """Hooks by which every tensor is computed once in a forward pass of `model`, however often it is read."""
    passes = ExitStack()

    def begin(*_: Any) -> None:
        passes.enter_context(parametrize.cached())

    return [model.register_forward_pre_hook(begin), model.register_forward_hook(lambda *_: passes.close(), always_call=True)]
