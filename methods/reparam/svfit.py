"""SVFit (Sun et al. 2024, arXiv 2409.05926): W = U diag(sigma) V^T, y = W_e x + U_r (z * V_r^T x) + b; only z trains, from z = sigma_r on.

W_e = W - U_r diag(sigma_r) V_r^T holds the rest. It is computed as y = W x + b + U_r ((z - sigma_r) * V_r^T x), the same map, so that
the start is exact in every precision and W stays as it was. The values train themselves: no logarithm, no clamp, and no weight decay,
which would pull to 0 instead of to sigma. r is at most the smaller side of a map.

The paper keeps "over 99 % of the information" without saying of what: `energy` takes the smallest r whose share of the sum of
squares (`measure: squares`) or of the values themselves (`measure: values`) is reached; `r` fixes it instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from methods.adapters.own_base import AdapterMethod
from methods.adapters.wrapped import LowRankLinear, map_shape, weight_and_bias
from methods.base import Context
from methods.maths.lowrank import energy_rank, truncated_svd
from methods.spec import Traits, UserError, choice, linear_roles, number

POWERS = {"squares": 2, "values": 1}


class SingularValueLinear(LowRankLinear):
    """y = W x + b + U ((z - sigma) * V^T x) with frozen U (out, r), sigma (r,) and V^T (r, in); z (r,) trains."""

    def __init__(self, base: nn.Module, u: Tensor, sigma: Tensor, vt: Tensor) -> None:
        super().__init__(base)
        self.U = nn.Parameter(u.to(self.device), requires_grad=False)
        self.sigma = nn.Parameter(sigma.to(self.device), requires_grad=False)
        self.Vt = nn.Parameter(vt.to(self.device), requires_grad=False)
        self.z = nn.Parameter(self.sigma.detach().clone())

    def chain(self) -> Sequence[Tensor]:
        """V^T, z - sigma, U."""
        return self.Vt, self.z - self.sigma, self.U


class SvFit(AdapterMethod):
    """r parameters a target; the SVD is computed once per cell."""

    @dataclass
    class Config:
        """`r` or `energy` in (0, 1], the other null; `measure`: of what `energy` is a share. `targets`: roles."""

        r: int | None
        energy: float | None
        measure: str
        targets: list[str]

        def __post_init__(self) -> None:
            if (self.r is None) == (self.energy is None):
                raise UserError(f"method.r={self.r} and method.energy={self.energy} exclude each other; give one and null for the other")
            if self.r is not None:
                number("method.r", self.r, 1)
            if self.energy is not None:
                number("method.energy", self.energy, 0, 1, open_low=True)
            choice("method.measure", self.measure, ("squares", "values"))
            linear_roles("method.targets", self.targets)

        def adjust(self, traits: Traits) -> Traits:
            """Experts are fused parameters, out of reach."""
            return replace(traits, moe=not {"gate", "up", "down"} & set(self.targets))

    traits = Traits(exports_lora=True)

    def wrap(self, base: nn.Module, name: str, ctx: Context) -> SingularValueLinear:
        """The first r singular values of one map, trainable."""
        frozen = ctx.once(f"svd-{name}", lambda: self._triples(base))
        return SingularValueLinear(base, frozen["U"], frozen["sigma"], frozen["Vt"])

    def _triples(self, base: nn.Module) -> dict[str, Tensor]:
        u, s, vt = truncated_svd(weight_and_bias(base)[0], self.config.r or min(map_shape(base)))
        r = len(s) if self.config.r else self._rank(s)
        return {"U": u[:, :r].contiguous(), "sigma": s[:r].clone(), "Vt": vt[:r].contiguous()}

    def _rank(self, s: Tensor) -> int:
        if s.is_meta:
            raise UserError(f"method.energy={self.config.energy} needs the weights to be counted; give method.r and method.energy=null")
        return energy_rank(s, self.config.energy, POWERS[self.config.measure])
