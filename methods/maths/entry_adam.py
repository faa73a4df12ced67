"""AdamW whose number of updates is a tensor, so that entries of one parameter may differ in age; plain torch, no model.

    m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,  t <- t + 1,  p <- p - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps),
    then p <- p - lr lambda p (decoupled decay). eps stands beside the uncorrected sqrt(v), as in the code of LIFT and SpIEL; for eps -> 0
it is torch's AdamW. State of a parameter: `m`, `v` of its shape, `t` of its shape in groups with the option `aged`, else a scalar.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class EntryAdamW(torch.optim.Optimizer):
    """The state of parameters that are vectors of single entries follows those entries by `Tensor` indexing from outside."""

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "aged": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, group)
                    if group["weight_decay"]:
                        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        return loss

    def update(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        """Adam's update, without decay."""
        state = self.state[parameter]
        if not state:
            age = torch.zeros_like(parameter) if group["aged"] else torch.zeros((), device=parameter.device)
            state |= {"m": torch.zeros_like(parameter), "v": torch.zeros_like(parameter), "t": age}
        (b1, b2), m, v, t = group["betas"], state["m"], state["v"], state["t"]
        m.lerp_(gradient, 1 - b1)
        v.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        t.add_(1)
        correction = (1 - b2**t).sqrt() / (1 - b1**t)
        parameter.sub_(correction * group["lr"] * m / (v.sqrt() + group["eps"]))
