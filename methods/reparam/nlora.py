"""NLoRA (Guo et al. 2025, arXiv 2502.14482): y = W x + s B N A x, A (r, in), N (r, r), B (out, r), s = alpha / r; W frozen.

`slora`: A and N Kaiming uniform, B = 0. `nlora`: A = W[:r, :], B = W[:, :r], and N = W[:r, :r] or, with `core: pinv`, its pseudoinverse:
B pinv(W[:r, :r]) A is the Nystrom approximation of W. `inttune`: as nlora, and only N trains.

The official code takes N = W[:r, :r], not its pseudoinverse, and leaves W as it is, so `nlora` starts at W + s B N A, not at W: both are
the defaults here. `residual: true` subtracts the start: W' = W + s (B N A - B_0 N_0 A_0), exact at initialisation and of rank 2 r. The
factors of a map are slices of (out, in); the official code slices what the module stores, which is transposed in a Conv1D.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from methods.adapters.own_base import AdapterMethod
from methods.adapters.wrapped import LowRankLinear, map_shape, weight_and_bias
from methods.base import Context
from methods.maths import draws
from methods.spec import Traits, UserError, choice, linear_roles, number

Factors = tuple[Tensor, Tensor, Tensor]
"""A, N, B."""


class Nlora(AdapterMethod):
    """r (in + out) + r^2 parameters a target; r^2 with `inttune`, whose A and B come from W again."""

    @dataclass
    class Config:
        """`mode`: slora, nlora or inttune. `core`: slice or pinv, the start of N. `residual`: subtract the start from W."""

        mode: str
        r: int
        alpha: float
        core: str
        residual: bool
        targets: list[str]

        def __post_init__(self) -> None:
            choice("method.mode", self.mode, ("slora", "nlora", "inttune"))
            number("method.r", self.r, 1)
            number("method.alpha", self.alpha, 0, open_low=True)
            choice("method.core", self.core, ("slice", "pinv"))
            linear_roles("method.targets", self.targets)
            if self.mode == "slora" and (self.core, self.residual) != ("slice", False):
                raise UserError("method.mode=slora starts from no slices of W; give method.core=slice method.residual=false")

        def adjust(self, traits: Traits) -> Traits:
            """Only SLoRA draws, slices start off the base model, and feed-forward maps of experts are out of reach."""
            drawn = ("init",) if self.mode == "slora" else ()
            exact = self.mode == "slora" or self.residual
            return replace(traits, randomness=drawn, exact_at_init=exact, moe=not {"gate", "up", "down"} & set(self.targets))

    traits = Traits(exports_lora=True, exact_at_init=False, moe=False)

    def wrap(self, base: nn.Module, name: str, ctx: Context) -> LowRankLinear:
        """The map with its three factors."""
        c, shape = self.config, map_shape(base)
        if c.mode == "slora":
            return NloraLinear(base, _random(*shape, c.r, ctx.generator(name), base.weight.device), c.alpha / c.r)
        if c.r > min(shape):
            raise UserError(f"method.r={c.r} is more than the {min(shape)} rows or columns of {name}; give at most {min(shape)}")
        factors = _slices(weight_and_bias(base)[0], c.r)
        if c.core == "pinv":
            factors = factors[0], _pseudoinverse(factors[1], name, ctx), factors[2]
        return NloraLinear(base, factors, c.alpha / c.r, core_only=c.mode == "inttune", residual=c.residual)


class NloraLinear(LowRankLinear):
    """y = W x + b + s B N A x, less s B_0 N_0 A_0 x where `residual`; with `core_only` A and B stay."""

    def __init__(self, base: nn.Module, factors: Factors, scale: float, core_only: bool = False, residual: bool = False) -> None:
        super().__init__(base)
        self.scale = torch.tensor(scale)
        self.core_only, self.residual = core_only, residual
        self.N = nn.Parameter(factors[1])
        for name, factor in (("A", factors[0]), ("B", factors[2])):
            self._hold(name, factor, trains=not core_only)
        starts = {"A0": factors[0], "N0": factors[1], "B0": factors[2]} if residual else {}
        for name, factor in starts.items():
            if not (core_only and name != "N0"):
                self._hold(name, factor.clone(), trains=False)

    def _hold(self, name: str, tensor: Tensor, *, trains: bool) -> None:
        if trains:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    def chain(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A, N, B, s; with a residual the two products side by side, or where A and B stay their common factors."""
        if not self.residual:
            return self.A, self.N, self.B, self.scale
        if self.core_only:
            return self.A, self.N - self.N0, self.B, self.scale
        core = torch.block_diag(self.N, -self.N0)
        return torch.cat([self.A, self.A0]), core, torch.cat([self.B, self.B0], 1), self.scale


def _random(out: int, inputs: int, r: int, generator: torch.Generator, device: torch.device) -> Factors:
    """SLoRA: B = 0 lets B alone move at the first step; with N = 0 too nothing would."""
    a = draws.kaiming((r, inputs), generator, device)
    return a, draws.kaiming((r, r), generator, device), torch.zeros(out, r, device=device)


def _slices(weight: Tensor, r: int) -> Factors:
    """Row by row in memory, as a resume finds them: a Conv1D's weight lies the other way, and products would differ in the last digit."""
    a, core, b = (part.clone(memory_format=torch.contiguous_format) for part in (weight[:r], weight[:r, :r], weight[:, :r]))
    return a, core, b


def _pseudoinverse(core: Tensor, name: str, ctx: Context) -> Tensor:
    """pinv(N) in float64, kept across a resume, since its last digits depend on the machine."""
    if core.is_meta:
        return torch.empty_like(core)
    kept = ctx.once(f"{name}.core", lambda: {"core": torch.linalg.pinv(core.cpu().double()).float()})
    return kept["core"].to(core.device)
