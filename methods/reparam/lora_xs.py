"""LoRA-XS (Balazy et al. 2024, arXiv 2405.17604, Section 3): y = W x + s B R A x, W ~ U_r S_r V_r^T, B = U_r, A = S_r V_r^T, s = alpha / r.

Only R (r, r) ~ N(0, sigma^2) trains; W, A and B are frozen, and nothing is taken out of W. The authors compute the SVD by a seeded
randomised algorithm; here it is exact, so B A is the truncation itself. r is at most the smaller side of a map.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from methods.adapters.own_base import AdapterMethod
from methods.adapters.wrapped import LowRankLinear, weight_and_bias
from methods.base import Context
from methods.maths.draws import normal
from methods.maths.lowrank import truncated_svd
from methods.spec import Traits, linear_roles, number


class CoreLinear(LowRankLinear):
    """y = W x + s B R A x with frozen B (out, r) and A (r, in); R (r, r) trains."""

    def __init__(self, base: nn.Module, up: Tensor, core: Tensor, down: Tensor, scale: float) -> None:
        super().__init__(base)
        self.scale = scale
        self.B = nn.Parameter(up.to(self.device), requires_grad=False)
        self.R = nn.Parameter(core.to(self.device))
        self.A = nn.Parameter(down.to(self.device), requires_grad=False)

    def chain(self) -> Sequence[Tensor]:
        """A, s R, B."""
        return self.A, self.scale * self.R, self.B


class LoraXs(AdapterMethod):
    """r^2 parameters a target, whatever its width; the SVD is computed once per cell."""

    @dataclass
    class Config:
        """`sigma`: standard deviation of R at the start. `targets`: roles.

        The start is exact up to `sigma` times the singular values in A: at 1e-5 MiniLM's logits move by 2e-4 of their size.
        """

        r: int
        alpha: float
        sigma: float
        targets: list[str]

        def __post_init__(self) -> None:
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            number("method.sigma", self.sigma, 0, 1e-3)
            linear_roles("method.targets", self.targets)

        def adjust(self, traits: Traits) -> Traits:
            """Experts are fused parameters, out of reach; sigma = 0 draws nothing and starts where the model is."""
            moe = not {"gate", "up", "down"} & set(self.targets)
            return replace(traits, moe=moe, exact_at_init=not self.sigma, randomness=("init",) if self.sigma else ())

    traits = Traits(randomness=("init",), exports_lora=True)

    def wrap(self, base: nn.Module, name: str, ctx: Context) -> CoreLinear:
        """B R A around one map."""
        frozen = ctx.once(f"svd-{name}", lambda: self._bases(base))
        up, down = frozen["B"], frozen["A"]
        core = normal((len(down), len(down)), self.config.sigma, ctx.generator(f"lora_xs.{name}"), up.device)
        return CoreLinear(base, up, core, down, self.config.alpha / self.config.r)

    def _bases(self, base: nn.Module) -> dict[str, Tensor]:
        u, s, vt = truncated_svd(weight_and_bias(base)[0], self.config.r)
        return {"B": u, "A": s[:, None] * vt}
